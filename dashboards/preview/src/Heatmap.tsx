// How does a histogram look over time? Our own drawing: Grafana's heatmap is not among its published components.
import {
  DataFrame, FieldType, GrafanaTheme2, dateTimeFormat, formattedValueToString, getValueFormat,
} from '@grafana/data';
import { useTheme2 } from '@grafana/ui';
import * as d3 from 'd3-scale-chromatic';
import { useLayoutEffect, useRef } from 'react';

import { HeatmapColorMode, HeatmapColorScale } from './panelcfg';
import type { Heatmap as Options } from './panelcfg';
import type { Props } from './visualizations';

const FONT_SIZE = 12;
const [LEFT, TOP, RIGHT, BOTTOM] = [60, 8, 8, 24];
const LEGEND_HEIGHT = 30;
const LEGEND_WIDTH = 200;
const TICK_WIDTH = 70;
const TICK_SECONDS = [1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400];
const MANY_HUES = ['Cividis', 'Cool', 'Inferno', 'Magma', 'Plasma', 'Turbo', 'Viridis', 'Warm'];

type Context = CanvasRenderingContext2D;

interface Bucket {
  upTo: string;
  cells: Map<number, number>;
}

function values(frame: DataFrame | undefined): Array<[number, number]> {
  const times = frame?.fields.find(({ type }) => type === FieldType.time)?.values ?? [];
  const numbers = frame?.fields.find(({ type }) => type === FieldType.number)?.values ?? [];
  return times.map((time, row) => [time, numbers[row] ?? 0]);
}

const limit = (text: string) => Number(text.replace('Inf', 'Infinity'));

// Prometheus counts what is up to a limit; a bucket has what is above the one before.
function buckets(frames: DataFrame[]): Bucket[] {
  const named = frames.map((frame) => ({ frame, upTo: frame.fields[1]?.labels?.['le'] ?? '' }));
  named.sort((one, other) => limit(one.upTo) - limit(other.upTo));
  return named.map(({ frame, upTo }, index) => {
    const below = new Map(values(named[index - 1]?.frame));
    const cells = values(frame).map(([time, value]) => [time, value - (below.get(time) ?? 0)] as const);
    return { upTo, cells: new Map(cells) };
  });
}

// As in Grafana, the exponent is of the opacity only, and a scheme begins near the colour of the ground.
function palette(color: Options['color'], theme: GrafanaTheme2): string[] {
  const at = Array.from({ length: color.steps }, (_, step) => step / (color.steps - 1));
  if (color.mode === HeatmapColorMode.Opacity) {
    const exponent = color.scale === HeatmapColorScale.Linear ? 1 : color.exponent;
    const alpha = (part: number) => Math.round(255 * part ** exponent).toString(16).padStart(2, '0');
    return at.map((part) => theme.visualization.getColorByName(color.fill) + alpha(part));
  }
  const interpolate = (d3 as unknown as Record<string, (part: number) => string>)[`interpolate${color.scheme}`];
  if (!interpolate) {
    throw new Error(`no colour scheme ${color.scheme}`);
  }
  const turned = MANY_HUES.includes(color.scheme) ? theme.isLight : theme.isDark;
  return turned !== color.reverse ? at.map(interpolate).reverse() : at.map(interpolate);
}

/** What is drawn, and where: pixels of a time in milliseconds, and of the lower edge of a bucket. */
interface Plot {
  rows: Bucket[];
  colours: string[];
  least: number;
  most: number;
  hidden: number;
  width: number;
  height: number;
  x: (time: number) => number;
  y: (row: number) => number;
}

function plan({ frames, timeRange, ...props }: Props, options: Options, theme: GrafanaTheme2): Plot {
  const rows = buckets(frames);
  const hidden = options.filterValues?.le ?? 0;
  const shown = rows.flatMap(({ cells }) => [...cells.values()]).filter((value) => value > hidden);
  const [from, to] = [timeRange.from.valueOf(), timeRange.to.valueOf()];
  const width = props.width - LEFT - RIGHT;
  const height = props.height - TOP - BOTTOM - (options.legend.show ? LEGEND_HEIGHT : 0);
  return {
    rows,
    colours: palette(options.color, theme),
    least: options.color.min ?? Math.min(...shown),
    most: options.color.max ?? Math.max(...shown),
    hidden,
    width,
    height,
    x: (time) => LEFT + ((time - from) / (to - from)) * width,
    y: (row) => TOP + height - (row / rows.length) * height,
  };
}

function drawCells(context: Context, plot: Plot, step: number, gap: number): void {
  const { rows, colours, least, most, hidden, x, y } = plot;
  rows.forEach(({ cells }, row) => {
    for (const [time, value] of cells) {
      if (value > hidden) {
        const part = most > least ? (value - least) / (most - least) : 1;
        context.fillStyle = colours[Math.max(0, Math.min(colours.length - 1, Math.floor(part * colours.length)))]!;
        // A cell ends at its time: a rate looks back.
        const left = Math.max(x(time - step), LEFT);
        context.fillRect(left, y(row + 1), Math.max(x(time) - left - gap, 1), y(row) - y(row + 1) - gap);
      }
    }
  });
}

function drawAxes(context: Context, plot: Plot, { timeRange, timeZone }: Props, unit: string): void {
  const { rows, width, height, x, y } = plot;
  const every = Math.ceil((FONT_SIZE + 4) / (height / rows.length));
  context.textAlign = 'right';
  rows.forEach(({ upTo }, row) => {
    const text = upTo === '+Inf' ? upTo : formattedValueToString(getValueFormat(unit)(limit(upTo)));
    if (row % every === 0) {
      context.fillText(text, LEFT - 8, y(row + 1));
    }
  });
  const [from, to] = [timeRange.from.valueOf(), timeRange.to.valueOf()];
  const wide = (length: number) => ((length * 1000) / (to - from)) * width >= TICK_WIDTH;
  const tick = (TICK_SECONDS.find(wide) ?? 86_400) * 1000;
  const format = tick < 60_000 ? 'HH:mm:ss' : tick < 86_400_000 ? 'HH:mm' : 'MM/DD';
  context.textAlign = 'center';
  for (let time = Math.ceil(from / tick) * tick; time < to; time += tick) {
    context.fillText(dateTimeFormat(time, { format, timeZone }), x(time), TOP + height + BOTTOM / 2);
  }
}

function drawLegend(context: Context, { colours, least, most }: Plot, top: number, unit: string): void {
  [least, most].forEach((value, end) => {
    context.fillText(formattedValueToString(getValueFormat(unit)(value)), LEFT + end * LEGEND_WIDTH, top + 17);
  });
  colours.forEach((colour, index) => {
    const [start, stop] = [index, index + 1].map((edge) => Math.round((edge * LEGEND_WIDTH) / colours.length));
    context.fillStyle = colour;
    context.fillRect(LEFT + start!, top, stop! - start!, 8);
  });
}

function draw(context: Context, props: Props, theme: GrafanaTheme2): void {
  const options = props.panel.options as unknown as Options;
  const plot = plan(props, options, theme);
  drawCells(context, plot, props.frames[0]?.fields[0]?.config.interval ?? 0, options.cellGap ?? 1);
  context.font = `${FONT_SIZE}px ${theme.typography.fontFamily}`;
  context.fillStyle = theme.colors.text.primary;
  context.textBaseline = 'middle';
  drawAxes(context, plot, props, options.yAxis.unit ?? 'short');
  if (options.legend.show) {
    drawLegend(context, plot, props.height - LEGEND_HEIGHT + 4, options.cellValues?.unit ?? 'short');
  }
}

export function Heatmap(props: Props) {
  const theme = useTheme2();
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const context = canvas.current?.getContext('2d');
    context?.clearRect(0, 0, props.width, props.height);
    if (context) {
      draw(context, props, theme);
    }
  });
  return <canvas ref={canvas} width={props.width} height={props.height} />;
}
