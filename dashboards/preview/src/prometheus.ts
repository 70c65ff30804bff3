// What does Prometheus answer? Queries, and their answers as the data frames of Grafana's data source.
import { DataFrame, Field, FieldType, Labels, createDataFrame, dateTime, rangeUtil } from '@grafana/data';

import { interpolate, literal } from './interpolate';
import type { Values } from './interpolate';

/** From when until when, in Unix seconds; and how often Prometheus scrapes, in seconds. */
export interface TimeSpan {
  from: number;
  to: number;
  scrape: number;
}

/** A panel's query, as Grafana's Prometheus data source saves it. */
export interface Target {
  expr: string;
  refId: string;
  legendFormat?: string;
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  interval?: string;
  hide?: boolean;
}

interface Series {
  metric: Labels;
  values?: Array<[number, string]>;
  value?: [number, string];
}

async function answer<T>(response: Response): Promise<T> {
  const { status, statusText } = response;
  const body = await response.json().catch(() => ({ error: `Prometheus: ${status} ${statusText}` }));
  if (body.status !== 'success') {
    throw new Error(body.error);
  }
  return body.data;
}

async function ask<T>(path: string, parameters: Record<string, string>): Promise<T> {
  const body = new URLSearchParams(parameters);
  return answer(await fetch(`/prometheus/api/v1/${path}`, { method: 'POST', body }));
}

/** Return the values that a label has in the span, of the series that a selector chooses or of all. */
export async function labelValues(label: string, selector: string | undefined, span: TimeSpan): Promise<string[]> {
  const query = new URLSearchParams({ start: String(span.from), end: String(span.to) });
  if (selector) {
    query.set('match[]', selector);
  }
  return answer(await fetch(`/prometheus/api/v1/label/${label}/values?${query}`));
}

function seconds(interval: string): number {
  return rangeUtil.intervalToMs(interval) / 1000;
}

/** Return the seconds between two points of a panel so many points wide, and `$__interval` and its like. */
export function intervals(span: TimeSpan, points: number, least?: string): { step: number; values: Values } {
  const scrape = least ? seconds(least) : span.scrape;
  const [from, to] = [dateTime(span.from * 1000), dateTime(span.to * 1000)];
  const range = { from, to, raw: { from, to } };
  const step = rangeUtil.calculateInterval(range, points, `${scrape * 1000}ms`).intervalMs / 1000;
  const length = Math.round(span.to - span.from);
  const values = {
    ...literal('__interval', `${step * 1000}ms`),
    ...literal('__interval_ms', String(step * 1000)),
    ...literal('__rate_interval', `${Math.max(step + scrape, 4 * scrape) * 1000}ms`),
    ...literal('__range', `${length}s`),
    ...literal('__range_s', String(length)),
  };
  return { step, values };
}

function legend(target: Target, query: string, labels: Labels): string | undefined {
  if (target.legendFormat && target.legendFormat !== '__auto') {
    return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
  }
  return Object.keys(labels).length ? undefined : query;
}

function seriesFrame(series: Series, name: string | undefined, target: Target, step: number): DataFrame {
  const points = series.values ?? (series.value ? [series.value] : []);
  const values = points.map(([, text]) => (text === 'NaN' ? null : Number(text.replace('Inf', 'Infinity'))));
  const config = name === undefined ? {} : { displayNameFromDS: name };
  const times = points.map(([at]) => at * 1000);
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, config: { interval: step * 1000 }, values: times },
      { name: 'Value', type: FieldType.number, labels: series.metric, config, values },
    ],
  });
}

function tableFrame(result: Series[], target: Target): DataFrame {
  const names = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const column = (name: string): Partial<Field> & { name: string } => ({
    name, type: FieldType.string, config: {}, values: result.map(({ metric }) => metric[name] ?? ''),
  });
  const [times, values] = [0, 1].map((part) => result.map(({ value }) => Number(value?.[part])));
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: times!.map((at) => at * 1000) },
      ...names.map(column),
      { name: 'Value', type: FieldType.number, config: {}, values: values! },
    ],
  });
}

/** Ask a panel's query over the span, or at its end where the query is instant. Raises Prometheus's own error. */
export async function query(target: Target, span: TimeSpan, points: number, values: Values): Promise<DataFrame[]> {
  const { step, values: builtin } = intervals(span, points, target.interval);
  const text = interpolate(target.expr, { ...values, ...builtin });
  const aligned = (time: number) => String(Math.floor(time / step) * step);
  const { result } = await (target.instant
    ? ask<{ result: Series[] }>('query', { query: text, time: String(span.to) })
    : ask<{ result: Series[] }>('query_range', {
        query: text, start: aligned(span.from), end: aligned(span.to), step: String(step),
      }));
  if (target.format === 'table' && result.length) {
    return [tableFrame(result, target)];
  }
  return result.map((series) => seriesFrame(series, legend(target, text, series.metric), target, step));
}
