// Has each dashboard the types of @grafana/schema? Writes it as a TypeScript literal and asks the compiler.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';

import ts from 'typescript';

const here = import.meta.dirname;
const folder = resolve(process.argv[2] ?? join(here, '../..'));

const { options } = ts.parseJsonConfigFileContent(
  ts.readConfigFile(join(here, '../tsconfig.json'), ts.sys.readFile).config, ts.sys, join(here, '..'),
);
const dashboards = readdirSync(folder).filter((name) => /^loopwatch-.*\.json$/.test(name));
if (!dashboards.length) {
  console.error(`${folder} has no loopwatch-*.json`);
  process.exit(1);
}
const files = dashboards.map((name) => {
  const file = join(here, `${basename(name, '.json')}.generated.ts`);
  const literal = readFileSync(join(folder, name), 'utf8').trim();
  writeFileSync(file, `import type { PlainDashboard } from './types';

export const dashboard: PlainDashboard = ${literal};
`);
  return file;
});

const problems = ts.getPreEmitDiagnostics(ts.createProgram(files, options));
console.log(ts.formatDiagnostics(problems, {
  getCanonicalFileName: (name) => name, getCurrentDirectory: () => here, getNewLine: () => '\n',
}) + `${dashboards.join(', ')}: ${problems.length} problems`);
process.exit(problems.length ? 1 : 0);
