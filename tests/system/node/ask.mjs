// What Node's clients see of a sidecar: prints one JSON object. node ask.mjs URL answers|error
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [url, what] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-node", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "sk-node", maxRetries: 0 });
const messages = [{ role: "user", content: "Do you ship?" }];

async function read(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const calls = {
  chat: (more) => openai.chat.completions.create({ model: "m", messages, ...more }),
  responses: (more) => openai.responses.create({ model: "m", input: "Do you ship?", ...more }),
  messages: (more) => anthropic.messages.create({ model: "m", max_tokens: 99, messages, ...more }),
  embeddings: (more) => openai.embeddings.create({ model: "m", input: ["a", "b"], ...more }),
};

async function asked(call, more) {
  const { data, response } = await call(more).withResponse();
  const answer = more?.stream ? await read(data) : data;
  return { how: response.headers.get("x-semcache"), answer };
}

async function failed(call, more) {
  try {
    await asked(call, more);
  } catch (error) {
    return { status: error.status, wait: error.headers?.get("retry-after"), kind: error.constructor.name };
  }
  return null;
}

const told = {};
for (const [name, call] of Object.entries(calls)) {
  const forms = name === "embeddings" ? { plain: {} } : { plain: {}, stream: { stream: true, top_p: 0 } };
  for (const [form, more] of Object.entries(forms)) {
    if (what === "error") told[`${name} ${form}`] = await failed(call, more);
    else told[`${name} ${form}`] = [await asked(call, more), await asked(call, more)];
  }
}
console.log(JSON.stringify(told));
