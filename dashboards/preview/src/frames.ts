// How do a panel's fields look? Its field configuration and overrides, applied as Grafana does.
import {
  DataFrame, FieldConfigOptionsRegistry, FieldConfigPropertyItem, FieldConfigSource, GrafanaTheme2, Registry,
  applyFieldOverrides,
} from '@grafana/data';
import {
  BarAlignment, FieldColorModeId, GraphDrawStyle, GraphFieldConfig, GraphGradientMode, LineInterpolation, Panel,
  StackingMode, ThresholdsConfig, VisibilityMode,
} from '@grafana/schema';

const STANDARD = [
  'color', 'decimals', 'description', 'displayName', 'mappings', 'max', 'min', 'noValue', 'thresholds', 'unit',
];

const TIME_SERIES: GraphFieldConfig = {
  barAlignment: BarAlignment.Center,
  drawStyle: GraphDrawStyle.Line,
  fillOpacity: 0,
  gradientMode: GraphGradientMode.None,
  lineInterpolation: LineInterpolation.Linear,
  lineWidth: 1,
  pointSize: 5,
  showPoints: VisibilityMode.Auto,
  spanNulls: false,
  stacking: { mode: StackingMode.None, group: 'A' },
};

// JSON has no -Infinity: the first threshold is saved as null.
function withInfinity(thresholds: ThresholdsConfig): ThresholdsConfig {
  const steps = thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity }));
  return { ...thresholds, steps };
}

function restored(source: Panel['fieldConfig'], type: string): FieldConfigSource {
  const { defaults = {}, overrides = [] } = source ?? {};
  return {
    defaults: {
      ...(type === 'timeseries' && { color: { mode: FieldColorModeId.PaletteClassic } }),
      ...defaults,
      ...(defaults.thresholds && { thresholds: withInfinity(defaults.thresholds) }),
      custom: { ...(type === 'timeseries' && TIME_SERIES), ...defaults.custom },
    } as FieldConfigSource['defaults'],
    overrides: overrides.map(({ matcher, properties }) => ({
      matcher: { options: undefined, ...matcher },
      properties: properties.map(({ id, value }) => ({
        id, value: id === 'thresholds' ? withInfinity(value as ThresholdsConfig) : value,
      })),
    })),
  };
}

// Grafana's own list of properties is in its server's bundle. This one has what the configuration names.
function registry({ defaults, overrides }: FieldConfigSource): FieldConfigOptionsRegistry {
  const overridden = overrides.flatMap(({ properties }) => properties.map(({ id }) => id));
  const custom = Object.keys(defaults.custom ?? {}).map((key) => `custom.${key}`);
  const ids = new Set([...STANDARD, ...custom, ...overridden.filter((id) => id.startsWith('custom.'))]);
  return new Registry(() =>
    [...ids].map((id) => ({
      id,
      name: id,
      path: id.replace(/^custom\./, ''),
      isCustom: id.startsWith('custom.'),
      process: (value: unknown) => value,
      shouldApply: () => true,
    }) as unknown as FieldConfigPropertyItem),
  );
}

/** Return the frames with colours, units and names, and the configuration that was applied. */
export function configure(frames: DataFrame[], panel: Panel, theme: GrafanaTheme2, timeZone: string) {
  const fieldConfig = restored(panel.fieldConfig, panel.type);
  const applied = applyFieldOverrides({
    data: frames,
    fieldConfig,
    fieldConfigRegistry: registry(fieldConfig),
    replaceVariables: (text) => text,
    theme,
    timeZone,
  });
  return { frames: applied, fieldConfig };
}
