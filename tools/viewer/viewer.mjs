// Shows one glTF scene on a page: turn, pan, zoom, hide parts, look from where the source stands.
// The page holds the scene in base64, in <script id="scene" type="model/gltf-binary">, so that it works from a file, with no network.
import {
  AmbientLight, Box3, Color, DirectionalLight, LinearToneMapping, PerspectiveCamera, Scene, Vector3, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";

const say = (text) => { document.getElementById("message").textContent = text; };

function bytes(base64) {
  const text = atob(base64.trim());
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer;
}

function parts(root) { // makes surfaces smooth, and lists what the legend lists: the meshes, by the name that Python gave them
  const found = new Map();
  root.traverse((object) => {
    if (!object.isMesh && !object.isLine && !object.isPoints) return;
    if (object.isMesh && !object.geometry.attributes.normal) { // surfaces are smooth; their normals are not worth the bytes
      object.geometry.computeVertexNormals();
      object.material.flatShading = false;
    }
    const label = object.userData.label ?? object.parent?.userData.label;
    if (!label) return;
    if (!found.has(label)) found.set(label, []);
    found.get(label).push(object);
  });
  return found;
}

function legend(found, redraw) {
  const list = document.getElementById("parts");
  for (const [label, objects] of found) {
    const row = document.createElement("label");
    const box = document.createElement("input");
    const swatch = document.createElement("i");
    box.type = "checkbox";
    box.checked = objects.some((object) => object.visible);
    box.addEventListener("change", () => { for (const object of objects) object.visible = box.checked; redraw(); });
    swatch.style.background = objects[0].userData.swatch ?? objects[0].parent?.userData.swatch ?? `#${objects[0].material.color.getHexString()}`;
    row.append(box, swatch, document.createTextNode(label));
    list.append(row);
  }
}

async function main() {
  const gltf = await new GLTFLoader().parseAsync(bytes(document.getElementById("scene").textContent), "");
  const canvas = document.getElementById("canvas");
  let renderer;
  try {
    renderer = new WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
  } catch {
    say("This browser shows no WebGL, so it cannot show the scene in 3D.");
    return;
  }
  renderer.toneMapping = LinearToneMapping;
  const scene = new Scene();
  const extras = gltf.scene.userData;
  scene.add(gltf.scene, new AmbientLight(0xffffff, 1.1));

  const box = new Box3().setFromObject(gltf.scene);
  const size = box.getSize(new Vector3()).length();
  const camera = new PerspectiveCamera(30, 1, size / 1000, size * 20);
  const light = new DirectionalLight(0xffffff, 2.2); // a lamp on the viewer's shoulder
  camera.add(light);
  light.position.set(0.4, 0.6, 1);
  scene.add(camera);
  let controls; // made anew for each view: they take what is up from the camera once
  const redraw = () => renderer.render(scene, camera);

  const views = extras.views?.length ? extras.views : [{
    label: "whole scene", position: box.max.toArray().map((v, k) => v + [0.6, -1.2, 0.5][k] * size), target: box.getCenter(new Vector3()).toArray(), up: [0, 0, 1],
  }];
  function look(view) {
    camera.up.fromArray(view.up);
    camera.position.fromArray(view.position);
    camera.fov = view.angle ?? 30;
    camera.updateProjectionMatrix();
    controls?.dispose();
    controls = new OrbitControls(camera, canvas);
    controls.target.fromArray(view.target);
    controls.addEventListener("change", redraw);
    controls.update();
    redraw();
  }
  const bar = document.getElementById("views");
  for (const view of views) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = view.label;
    button.addEventListener("click", () => look(view));
    bar.append(button);
  }
  function resize() {
    const { clientWidth: w, clientHeight: h } = canvas.parentElement;
    renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    renderer.setSize(w, h, false);
    camera.aspect = w / h;
    camera.updateProjectionMatrix();
    redraw();
  }
  legend(parts(gltf.scene), redraw);
  new ResizeObserver(resize).observe(canvas.parentElement);
  look(views[0]);
  resize();
  say("");
  document.body.dataset.triangles = renderer.info.render.triangles;
}

main().catch((problem) => { say(`The scene could not be shown: ${problem.message}`); throw problem; });
