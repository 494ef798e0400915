def add_parser(c):
    p=c.add_parser("demo")
