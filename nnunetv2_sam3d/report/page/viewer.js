"use strict";
// Shows triangle meshes with WebGL: drag turns, wheel or pinch zooms, arrow keys turn, check boxes choose.
(function () {
  const VERTEX = `attribute vec3 position; attribute vec3 normal; uniform mat3 turn; uniform float zoom, aspect;
    varying float light; void main() { vec3 p = turn * position * zoom; vec3 n = turn * normal;
    light = 0.35 + 0.65 * abs(dot(normalize(n), normalize(vec3(0.3, 0.4, 0.87))));
    gl_Position = vec4(p.x / aspect, p.y, -p.z * 0.2, 1.0); }`;
  const FRAGMENT = `precision mediump float; uniform vec4 paint; varying float light;
    void main() { gl_FragColor = vec4(paint.rgb * light, paint.a); }`;

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  }

  function decode(mesh) {
    const raw = new Uint16Array(bytes(mesh.positions));
    const triangles = new Uint32Array(bytes(mesh.triangles));
    const positions = Float32Array.from(raw, (value) => (value - 32768) * mesh.scale);
    const normals = new Float32Array(positions.length);
    for (let i = 0; i < triangles.length; i += 3) {
      const [a, b, c] = [3 * triangles[i], 3 * triangles[i + 1], 3 * triangles[i + 2]];
      const u = [0, 1, 2].map((k) => positions[b + k] - positions[a + k]);
      const v = [0, 1, 2].map((k) => positions[c + k] - positions[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += n[k];
    }
    return { positions, normals, triangles };
  }

  function compile(gl) {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    return program;
  }

  function buffer(gl, target, data) {
    const made = gl.createBuffer();
    gl.bindBuffer(target, made);
    gl.bufferData(target, data, gl.STATIC_DRAW);
    return made;
  }

  function start(viewer) {
    const canvas = viewer.querySelector("canvas");
    const scene = JSON.parse(viewer.querySelector("script").textContent);
    const gl = canvas.getContext("webgl", { preserveDrawingBuffer: true, antialias: true, alpha: false });
    if (!gl || !gl.getExtension("OES_element_index_uint")) {
      viewer.dataset.state = "no-webgl";
      viewer.querySelector(".fallback").hidden = false;
      canvas.hidden = true;
      return;
    }
    const program = compile(gl);
    const at = (name) => gl.getUniformLocation(program, name);
    let [wide, high] = [1, 1]; // mm from the middle that turning about the long axis must not cut off
    const meshes = scene.meshes.map((mesh) => {
      const data = decode(mesh);
      for (let i = 0; mesh.shown && i < data.positions.length; i += 3) {
        wide = Math.max(wide, Math.hypot(data.positions[i], data.positions[i + 1]));
        high = Math.max(high, Math.abs(data.positions[i + 2]));
      }
      const paint = [1, 3, 5].map((i) => parseInt(mesh.colour.slice(i, i + 2), 16) / 255);
      return {
        paint, veil: mesh.veil, shown: mesh.shown, count: data.triangles.length,
        positions: buffer(gl, gl.ARRAY_BUFFER, data.positions), normals: buffer(gl, gl.ARRAY_BUFFER, data.normals),
        triangles: buffer(gl, gl.ELEMENT_ARRAY_BUFFER, data.triangles),
      };
    });
    const shape = canvas.clientWidth / canvas.clientHeight;
    let [yaw, pitch, zoom] = [0.5, -1.35, 0.9 * Math.min(shape / wide, 1 / (high + 0.2 * wide))];

    function draw() {
      canvas.width = canvas.clientWidth * 2;
      canvas.height = canvas.clientHeight * 2;
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(1, 1, 1, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
      const [s, c, t, d] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
      gl.uniformMatrix3fv(at("turn"), false, [c, d * s, t * s, -s, d * c, t * c, 0, -t, d]);
      gl.uniform1f(at("zoom"), zoom);
      gl.uniform1f(at("aspect"), canvas.width / canvas.height);
      for (const veil of [false, true]) { // what can be seen through comes last and hides nothing
        gl.depthMask(!veil);
        for (const mesh of meshes.filter((entry) => entry.shown && entry.veil === veil)) {
          for (const [name, data] of [["position", mesh.positions], ["normal", mesh.normals]]) {
            const place = gl.getAttribLocation(program, name);
            gl.bindBuffer(gl.ARRAY_BUFFER, data);
            gl.enableVertexAttribArray(place);
            gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
          }
          gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles);
          gl.uniform4f(at("paint"), mesh.paint[0], mesh.paint[1], mesh.paint[2], veil ? 0.35 : 1);
          gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
        }
        gl.depthMask(true);
      }
    }

    function turn(x, y) {
      yaw += x;
      pitch = Math.max(-3.1, Math.min(0, pitch + y));
      draw();
    }

    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) turn(event.movementX * 0.01, event.movementY * 0.01);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom *= Math.exp(-event.deltaY * 0.001);
      draw();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
      if (step) { event.preventDefault(); turn(step[0], step[1]); }
    });
    viewer.querySelectorAll("input").forEach((box) => box.addEventListener("change", () => {
      meshes[Number(box.value)].shown = box.checked;
      draw();
    }));
    window.addEventListener("resize", draw);
    draw();
    const pixels = new Uint8Array(4 * canvas.width * canvas.height);
    gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    let painted = 0;
    for (let i = 0; i < pixels.length; i += 4) if (pixels[i] + pixels[i + 1] + pixels[i + 2] < 765) painted++;
    viewer.dataset.painted = String(painted);
    viewer.dataset.state = "drawn";
  }

  document.querySelectorAll(".viewer").forEach(start);
})();
