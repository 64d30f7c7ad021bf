// Validates custom resources, a JSON list on standard input, with the schemas of @kubernetes-models, and prints the problems.
// These schemas accept unknown fields, which the API server would silently drop. So this script records the fields that a
// validation reads, and reports each field that was never read as unknown.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder] = process.argv.slice(2);
const packages = {
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
};

// Fields below these paths are free-form and not part of the schemas.
const open = [/^metadata\./, /\.matchLabels\./, /\.(labels|annotations)\./];

function watched(value, path, asked) {
  if (value === null || typeof value !== "object") return value;
  return new Proxy(value, {
    get(target, key) {
      const inner = target[key];
      if (typeof key !== "string" || !Object.hasOwn(target, key)) return inner;
      asked.add(`${path}${key}`);
      return watched(inner, `${path}${key}.`, asked);
    },
  });
}

function* fields(value, path = "") {
  if (value === null || typeof value !== "object") return;
  for (const [key, inner] of Object.entries(value)) {
    yield `${path}${key}`;
    yield* fields(inner, `${path}${key}.`);
  }
}

let problems = 0;
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const name = `${resource.kind}/${resource.metadata.name}`;
  const complain = (problem) => { problems += 1; console.log(`${name}: ${problem}`); };
  const asked = new Set();
  try {
    const file = resolve(folder, "node_modules", packages[group], group, version, `${resource.kind}.js`);
    const kind = (await import(pathToFileURL(file)))[resource.kind];
    kind.prototype.validate.call(watched(resource, "", asked));
  } catch (error) {
    complain(error.message);
    continue;
  }
  for (const field of fields(resource)) {
    if (!asked.has(field) && !open.some((pattern) => pattern.test(field))) complain(`unknown field ${field}`);
  }
}
process.exit(problems ? 1 : 0);
