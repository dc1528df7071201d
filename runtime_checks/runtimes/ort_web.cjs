// Runs one model on all images with onnxruntime-web's WebAssembly in Node. Called by ort_web.py:
//     node ort_web.cjs FOLDER
// FOLDER holds model.onnx, request.json and feeds.bin; answer.json and one file for each output are written into it.
// onnxruntime-web is looked up from the current folder, then in NODE_PATH. Exit code 3: it is not there; 5: it fails.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const ARRAYS = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array, int32: Int32Array, int64: BigInt64Array };

function load() {
  try {
    return require(require.resolve("onnxruntime-web", { paths: [process.cwd()] }));
  } catch (error) {
    process.stderr.write(String(error.message).split("\n")[0]);
    process.exit(3);
  }
}

function bytes(values) {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

async function main(folder) {
  const ort = load();
  const request = JSON.parse(fs.readFileSync(path.join(folder, "request.json"), "utf8"));
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  const model = new Uint8Array(fs.readFileSync(path.join(folder, "model.onnx")));
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: request.level };
  const session = await ort.InferenceSession.create(model, options);
  const feeds = fs.readFileSync(path.join(folder, "feeds.bin"));
  const values = new ARRAYS[request.type](feeds.buffer.slice(feeds.byteOffset, feeds.byteOffset + feeds.byteLength));
  const size = request.dims.reduce((product, dim) => product * dim, 1);
  const answer = { version: ort.env.versions.web ?? ort.env.versions.common, outputs: {} };
  const chunks = Object.fromEntries(request.outputs.map((name) => [name, []]));
  for (let image = 0; image < request.count; image += 1) {
    const feed = new ort.Tensor(request.type, values.slice(image * size, (image + 1) * size), request.dims);
    const found = await session.run({ [request.input]: feed });
    for (const name of request.outputs) {
      chunks[name].push(Buffer.from(bytes(found[name].data)));
      answer.outputs[name] = { type: found[name].type, dims: found[name].dims };
    }
  }
  request.outputs.forEach((name, index) => {
    fs.writeFileSync(path.join(folder, `output${index}.bin`), Buffer.concat(chunks[name]));
  });
  fs.writeFileSync(path.join(folder, "answer.json"), JSON.stringify(answer));
}

main(process.argv[2]).catch((error) => {
  process.stderr.write(String(error.message ?? error));
  process.exit(5);
});
