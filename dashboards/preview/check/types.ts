// Which types does a dashboard's JSON have? Those of @grafana/schema, with the panels' own where it publishes them.
import type {
  AnnotationQuery, Dashboard, DataSourceRef, FieldConfig, MatcherConfig, Panel, RowPanel, VariableModel,
} from '@grafana/schema';

import type {
  BarGauge, Heatmap, HeatmapField, Stat, Table, TableField, TimeSeries, TimeSeriesField,
} from '../src/panelcfg';

/** The same type with the values of string enums in place of the enums, as JSON has them. */
type Plain<T> = unknown extends T
  ? T
  : T extends string
    ? `${T}`
    : T extends object
      ? { [K in keyof T]: Plain<T[K]> }
      : T;

/** The same type with all left out that Grafana fills in. */
type Sparse<T> = T extends unknown[] ? T : T extends object ? { [K in keyof T]?: Sparse<T[K]> } : T;

/** An override of one property, by its path. */
type Overridden<T, Prefix extends string = ''> = {
  [K in keyof T & string]-?: { id: `${Prefix}${K}`; value?: T[K] };
}[keyof T & string];

type Defaults = Omit<FieldConfig, 'custom'>;

/** A query of the Prometheus data source, which @grafana/schema does not have. */
interface PrometheusTarget {
  datasource: DataSourceRef;
  editorMode?: 'code' | 'builder';
  exemplar?: boolean;
  expr: string;
  format?: 'time_series' | 'table' | 'heatmap';
  hide?: boolean;
  instant?: boolean;
  interval?: string;
  legendFormat?: string;
  range?: boolean;
  refId: string;
}

type Common = Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'>;

interface Own<Type extends string, Options, Custom> extends Common {
  type: Type;
  options: Sparse<Options>;
  fieldConfig: {
    defaults: Defaults & { custom?: Sparse<Custom> };
    overrides: Array<{
      matcher: MatcherConfig;
      properties: Array<Overridden<Defaults> | Overridden<Custom, 'custom.'>>;
    }>;
  };
  targets: PrometheusTarget[];
}

type Known =
  | Own<'bargauge', BarGauge, Record<never, never>>
  | Own<'heatmap', Heatmap, HeatmapField>
  | Own<'stat', Stat, Record<never, never>>
  | Own<'table', Table, TableField>
  | Own<'timeseries', TimeSeries, TimeSeriesField>;

interface Row extends Omit<RowPanel, 'panels'> {
  panels: Known[];
}

/** An annotation from the Prometheus data source, which @grafana/schema does not have either. */
interface PrometheusAnnotation extends AnnotationQuery {
  expr?: string;
  step?: string;
  tagKeys?: string;
  textFormat?: string;
  titleFormat?: string;
}

/** What Grafana saves with a variable besides, and, in its SDK, also with one that is no interval. */
interface Variable extends VariableModel {
  auto?: boolean;
  auto_count?: number;
  auto_min?: string;
  definition?: string;
}

interface Typed extends Omit<Dashboard, 'annotations' | 'panels' | 'templating'> {
  annotations?: { list?: PrometheusAnnotation[] };
  panels: Array<Known | Row>;
  templating?: { list?: Variable[] };
}

export type PlainDashboard = Plain<Typed>;
