// How does a dashboard look? Its variables, its rows and its panels, each with what came of its queries.
import { DataFrame, FieldType, GrafanaTheme2, TimeRange } from '@grafana/data';
import type { Panel, RowPanel } from '@grafana/schema';
import { Icon, PanelChrome, useTheme2 } from '@grafana/ui';
import { Component, ReactNode } from 'react';

import { configure } from './frames';
import { Values, interpolateText } from './interpolate';
import type { Placed } from './layout';
import { VISUALIZATIONS } from './visualizations';

/** A panel in its place, and its data or the reason why there are none. */
export interface Filled extends Placed {
  frames: DataFrame[];
  error?: string;
}

export interface PageProps {
  title: string;
  values: Values;
  filled: Filled[];
  timeRange: TimeRange;
  timeZone: string;
}

/** Say in red why there is nothing to see; who counts failures looks for the attribute. */
export function Failure({ title, children }: { title: string; children: ReactNode }) {
  return (
    <div data-failed={title} style={{ color: '#ff3344', fontSize: 16, overflow: 'auto', height: '100%' }}>
      {children}
    </div>
  );
}

class Guard extends Component<{ title: string; children: ReactNode }, { error?: Error }> {
  override state: { error?: Error } = {};

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  override render() {
    const { title, children } = this.props;
    const { error } = this.state;
    return error ? <Failure title={title}>Cannot be drawn: {error.message}</Failure> : children;
  }
}

function hasNumbers(frames: DataFrame[]): boolean {
  return frames.some(({ fields }) =>
    fields.some(({ type, values }) => type === FieldType.number && values.some((value) => value !== null)),
  );
}

function problem({ panel, frames, error }: Filled): string | undefined {
  if (error) {
    return error;
  }
  if (!VISUALIZATIONS[panel.type] || ('repeat' in panel && panel.repeat)) {
    return `The preview cannot draw ${panel.repeat ? 'repeated panels' : `the type ${panel.type}`}.`;
  }
  return hasNumbers(frames) ? undefined : frames.length ? 'No data: not a number' : 'No data';
}

function Row({ title }: { title: string }) {
  return (
    <div style={{ display: 'flex', alignItems: 'center', gap: 8, height: '100%' }}>
      <Icon name="angle-down" /> <h5 style={{ margin: 0 }}>{title}</h5>
    </div>
  );
}

function content(filled: Filled, page: PageProps, theme: GrafanaTheme2) {
  const panel = filled.panel as Panel;
  const failed = problem(filled);
  if (failed) {
    return () => <Failure title={panel.title ?? ''}>{failed}</Failure>;
  }
  const Visualization = VISUALIZATIONS[panel.type]!;
  const { timeRange, timeZone } = page;
  const configured = configure(filled.frames, panel, theme, timeZone);
  return (width: number, height: number) => (
    <Guard title={panel.title ?? ''}>
      <Visualization {...configured} {...{ panel, timeRange, timeZone, width, height }} />
    </Guard>
  );
}

function Cell({ filled, page }: { filled: Filled; page: PageProps }) {
  const theme = useTheme2();
  const { panel, box } = filled;
  const title = interpolateText(panel.title ?? '', page.values);
  const { width, height } = box;
  return (
    <div style={{ position: 'absolute', ...box }}>
      {panel.type === 'row' ? <Row title={title} /> : (
        <PanelChrome
          title={title}
          description={(panel as Panel).description}
          padding={panel.type === 'stat' && !problem(filled) ? 'none' : 'md'}
          {...{ width, height }}
        >
          {content(filled, page, theme)}
        </PanelChrome>
      )}
    </div>
  );
}

export function Page(page: PageProps) {
  const { colors, spacing, shape } = useTheme2();
  const border = `1px solid ${colors.border.medium}`;
  const pill = { padding: spacing(0.5, 1), border, borderRadius: shape.radius.default };
  const bottom = Math.max(...page.filled.map(({ box }) => box.top + box.height));
  return (
    <div style={{ padding: 16 }}>
      <h4>{page.title}</h4>
      <div style={{ display: 'flex', gap: 8, marginBottom: 16 }}>
        {Object.entries(page.values).map(([name, { label, text }]) => (
          <span key={name} style={pill}><span style={{ color: colors.text.secondary }}>{label}</span> {text}</span>
        ))}
      </div>
      <div style={{ position: 'relative', height: bottom }}>
        {page.filled.map((filled) => <Cell key={filled.panel.id} filled={filled} page={page} />)}
      </div>
    </div>
  );
}
