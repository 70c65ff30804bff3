// Serves the page, the dashboards, what Grafana's server would serve to its components, and a Prometheus.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';

const here = import.meta.dirname;
const inter = join(here, 'node_modules/@fontsource/inter/files');

const folders = {
  '/dashboards/': resolve(here, '..'),
  '/public/build/img/icons/': join(here, 'node_modules/@grafana/ui/dist/public/img/icons'),
};
const files = {
  '/public/fonts/inter/Inter-Regular.woff2': join(inter, 'inter-latin-400-normal.woff2'),
  '/public/fonts/inter/Inter-Medium.woff2': join(inter, 'inter-latin-500-normal.woff2'),
};
const types = { '.json': 'application/json', '.svg': 'image/svg+xml', '.woff2': 'font/woff2' };

function find(path) {
  const prefix = Object.keys(folders).find((start) => path.startsWith(start) && !path.includes('..'));
  return files[path] ?? (prefix && join(folders[prefix], path.slice(prefix.length)));
}

async function serve(request, response, next) {
  const file = find(decodeURI(request.url.split('?')[0]));
  const type = types[/\.\w+$/.exec(file ?? '')?.[0]];
  if (!file || !type) {
    return next();
  }
  const found = await stat(file).catch(() => null);
  response.writeHead(found ? 200 : 404, { 'Content-Type': type });
  return found ? createReadStream(file).pipe(response) : response.end();
}

const prometheus = {
  target: process.env.PROMETHEUS_URL ?? 'http://127.0.0.1:9090',
  changeOrigin: true,
  rewrite: (path) => path.replace(/^\/prometheus/, ''),
};
const server = { proxy: { '/prometheus': prometheus }, host: '127.0.0.1' };

export default {
  server,
  preview: server,
  build: {
    chunkSizeWarningLimit: 20_000,
    minify: false,
    reportCompressedSize: false,
    // The code editor is half of @grafana/ui, and no panel shows it.
    rollupOptions: { external: (id) => id.endsWith('ReactMonacoEditor.mjs') },
  },
  plugins: [
    {
      name: 'grafana-files',
      configureServer: ({ middlewares }) => void middlewares.use(serve),
      configurePreviewServer: ({ middlewares }) => void middlewares.use(serve),
    },
  ],
};
