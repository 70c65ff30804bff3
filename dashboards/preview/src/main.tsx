// Draws the dashboard that the address names: ?dashboard=overview&from=…&to=…&scrape=1s&theme=dark&var-job=app
import { ThemeContext, createTheme, dateTime, rangeUtil } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import type { Dashboard, Panel } from '@grafana/schema';
import { GlobalStyles } from '@grafana/ui';
import type { ReactNode } from 'react';
import { flushSync } from 'react-dom';
import { Root, createRoot } from 'react-dom/client';

import { Failure, Filled, Page } from './Page';
import type { Values } from './interpolate';
import { Placed, place } from './layout';
import { Target, TimeSpan, query } from './prometheus';
import { settle } from './variables';

const PADDING = 16;
const QUIET_MS = 300;

async function fill(placed: Placed, span: TimeSpan, values: Values): Promise<Filled> {
  const panel = placed.panel as Panel;
  const targets = ((panel.targets ?? []) as unknown as Target[]).filter(({ hide }) => !hide);
  const points = panel.maxDataPoints ?? Math.floor(placed.box.width);
  try {
    const least = panel.interval ? { interval: panel.interval } : {};
    const found = await Promise.all(targets.map((target) => query({ ...least, ...target }, span, points, values)));
    return { ...placed, frames: found.flat() };
  } catch (error) {
    return { ...placed, frames: [], error: (error as Error).message };
  }
}

// Charts measure themselves, legends wrap, icons are fetched: it is drawn when nothing has changed for a while.
function settled(element: Element): Promise<void> {
  return new Promise((resolve) => {
    let timer = setTimeout(resolve, QUIET_MS);
    new MutationObserver(() => {
      clearTimeout(timer);
      timer = setTimeout(resolve, QUIET_MS);
    }).observe(element, { attributes: true, childList: true, subtree: true });
  });
}

async function main(screen: Root): Promise<void> {
  const asked = new URLSearchParams(location.search);
  const to = Number(asked.get('to') ?? Date.now() / 1000);
  const from = Number(asked.get('from') ?? to - 3600);
  const span = { from, to, scrape: rangeUtil.intervalToMs(asked.get('scrape') ?? '15s') / 1000 };
  const theme = createTheme({ colors: { mode: asked.get('theme') === 'light' ? 'light' : 'dark' } });
  const show = (page?: ReactNode) =>
    flushSync(() => screen.render(
      <ThemeContext.Provider value={theme}><GlobalStyles />{page}</ThemeContext.Provider>,
    ));

  // Grafana's styles name the fonts, and the canvas of a chart takes a font only if it is there already.
  show();
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
  await initPluginTranslations('preview');

  const answer = await fetch(`/dashboards/loopwatch-${asked.get('dashboard') ?? 'overview'}.json`);
  const dashboard: Dashboard = await answer.json();
  const values = await settle(dashboard.templating?.list ?? [], asked, span);
  const placed = place(dashboard.panels ?? [], document.body.clientWidth - 2 * PADDING);
  const filled = await Promise.all(placed.map((each) => fill(each, span, values)));
  const [start, end] = [dateTime(from * 1000), dateTime(to * 1000)];
  const timeRange = { from: start, to: end, raw: { from: start, to: end } };
  const [title, timeZone] = [dashboard.title ?? '', dashboard.timezone ?? 'browser'];
  show(<Page {...{ title, timeZone, values, filled, timeRange }} />);
  await settled(root);
}

const root = document.getElementById('root')!;
const screen = createRoot(root);
main(screen)
  .catch((error) => flushSync(() => screen.render(<Failure title="dashboard">{String(error)}</Failure>)))
  .finally(() => {
    document.body.dataset['errors'] = String(document.querySelectorAll('[data-failed]').length);
    document.body.dataset['ready'] = 'yes';
  });
