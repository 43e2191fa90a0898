// Questions to the server, and what it answers.

/** An error whose message is for the reader. */
export class ServerError extends Error {}

async function failure(response) {
  let message = `the server answers with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: a proxy in between, perhaps
  }
  return new ServerError(message);
}

async function post(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** Return what the server answers to a path. */
export async function get(path) {
  const response = await fetch(path).catch(() => {
    throw new ServerError("the server does not answer");
  });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Return the models of the server. */
export const models = () => get("models");

/** Return what a model does with a pair. */
export async function explain(body, signal) {
  return (await post("explain", body, signal)).json();
}

/** Return the translations of lines: [line]. */
export async function translate(body, signal) {
  return (await (await post("translate", body, signal)).json()).lines;
}

/** Yield the sentences of a text as they are translated: {paragraph, line}. */
export async function* stream(body, signal) {
  const response = await post("translate/stream", body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("the server has ended in the middle of the text");
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const name = /^event: (.*)$/m.exec(event)[1];
      const data = JSON.parse(/^data: (.*)$/m.exec(event)[1]);
      if (name === "done") return;
      if (name === "error") throw new ServerError(data.error.message);
      yield data;
    }
  }
}
