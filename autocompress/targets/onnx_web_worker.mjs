// Runs one .onnx file in onnxruntime-web for another process.
//
// A request or an answer is four bytes that tell a length, so many bytes of JSON, and the bytes of
// the arrays that the JSON lists. Requests are read from standard input, without giving way to
// anything else in between: an inference is over when its answer is written.

import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';

const SHORT = { bool: Uint8Array, float16: Uint16Array };
const printed = [];
const write = fs.writeSync;
// the runtime prints its profile, to the console or past it; nothing else may reach the answers
fs.writeSync = (target, text, ...rest) => {
  if (target > 2) return write(target, text, ...rest);
  printed.push(String(text));
  return text.length;
};
for (const name of ['log', 'info', 'warn', 'error', 'debug']) {
  console[name] = (...parts) => printed.push(`${parts.join(' ')}\n`);
}

function readWhole(count) {
  const buffer = Buffer.alloc(count);
  for (let got = 0; got < count;) {
    const more = fs.readSync(0, buffer, got, count - got, null);
    if (more === 0) process.exit(0);
    got += more;
  }
  return buffer;
}

function answer(about, chunks = []) {
  const text = Buffer.from(JSON.stringify(about));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  const whole = Buffer.concat([length, text, ...chunks]);
  for (let done = 0; done < whole.length;) done += write(1, whole, done);
}

function resolved() {
  const require = createRequire(path.join(process.cwd(), 'here.js'));
  const common = path.join(path.dirname(process.execPath), '..', 'lib');
  const file = require.resolve('onnxruntime-web', { paths: [process.cwd(), common] });
  const folder = file.slice(0, file.lastIndexOf('onnxruntime-web') + 'onnxruntime-web'.length);
  const about = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
  return { version: about.version, folder, load: () => require(file) };
}

function kindOf(ort, type) {
  if (SHORT[type]) return SHORT[type];
  const made = { int64: BigInt64Array, uint64: BigUint64Array, float32: Float32Array,
    float64: Float64Array, int32: Int32Array, uint32: Uint32Array, int16: Int16Array,
    uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array };
  return made[type];
}

let ort, file, options, session, feed, found;

const operations = {
  version() {
    const { version, folder } = resolved();
    answer({ version, folder, node: process.versions.node });
  },
  async open(asked) {
    ort = resolved().load();
    ort.env.wasm.numThreads = asked.threads;
    ort.env.logLevel = 'error';
    options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all',
      freeDimensionOverrides: asked.free };
    file = fs.readFileSync(asked.file);
    session = await ort.InferenceSession.create(file, options);
    answer({ inputs: session.inputMetadata, outputs: session.outputNames,
      threads: ort.env.wasm.numThreads });
  },
  feed(asked) {
    feed = {};
    for (const { name, type, shape, bytes } of asked.listed) {
      const raw = readWhole(bytes);
      const Kind = kindOf(ort, type);
      const own = raw.buffer.slice(raw.byteOffset, raw.byteOffset + bytes);
      feed[name] = new ort.Tensor(type, new Kind(own), shape);
    }
    answer({});
  },
  async run() {
    found = await session.run(feed);
    answer({});
  },
  outputs() {
    const parts = session.outputNames.map((name) => found[name]);
    const chunks = parts.map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    const arrays = parts.map(({ type, dims }, i) => ({ type, shape: dims, bytes: chunks[i].length }));
    answer({ arrays }, chunks);
  },
  async profile(asked) {
    const profiled = await ort.InferenceSession.create(file, { ...options, enableProfiling: true });
    for (let i = 0; i < asked.runs; i += 1) await profiled.run(feed);
    printed.length = 0;
    profiled.endProfiling();
    await new Promise((done) => setTimeout(done, 0));
    const text = printed.join('');
    await profiled.release();
    answer({ events: text.slice(text.indexOf('['), text.lastIndexOf(']') + 1) });
  },
};

for (;;) {
  const asked = JSON.parse(readWhole(readWhole(4).readUInt32LE()).toString());
  try {
    await operations[asked.operation](asked);
  } catch (error) {
    answer({ error: String((error && error.message) || error) });
  }
}
