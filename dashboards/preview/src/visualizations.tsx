// What is inside of a panel? Grafana's own components, given what Grafana's panels give them.
import {
  DataFrame, FieldConfigSource, FieldDisplay, TimeRange, getDisplayValueAlignmentFactors, getFieldDisplayValues,
} from '@grafana/data';
import { BarGaugeDisplayMode, BigValueGraphMode, Panel, VizOrientation } from '@grafana/schema';
import {
  BarGauge, BigValue, Table, TimeSeries, VizRepeater, VizRepeaterRenderValueProps, useTheme2,
} from '@grafana/ui';
import type { ComponentType } from 'react';

import { Heatmap } from './Heatmap';
import type { BarGauge as BarGaugeOptions, Stat as StatOptions, TimeSeries as TimeSeriesOptions } from './panelcfg';

export interface Props {
  frames: DataFrame[];
  fieldConfig: FieldConfigSource;
  panel: Panel;
  timeRange: TimeRange;
  timeZone: string;
  width: number;
  height: number;
}

type Factors = ReturnType<typeof getDisplayValueAlignmentFactors>;
type One = VizRepeaterRenderValueProps<FieldDisplay, Factors>;

function useValues({ frames, fieldConfig, panel, timeZone }: Props, sparkline = false): () => FieldDisplay[] {
  const theme = useTheme2();
  const { reduceOptions } = panel.options as unknown as StatOptions;
  const replaceVariables = (text: string) => text;
  return () => getFieldDisplayValues({
    data: frames, fieldConfig, reduceOptions, replaceVariables, sparkline, theme, timeZone,
  });
}

function Stat(props: Props) {
  const theme = useTheme2();
  const options = props.panel.options as unknown as StatOptions;
  const getValues = useValues(props, options.graphMode !== BigValueGraphMode.None);
  const one = ({ value, width, height, count, alignmentFactors }: One) => (
    <BigValue
      value={value.display}
      sparkline={value.sparkline}
      colorMode={options.colorMode as never}
      graphMode={options.graphMode as never}
      justifyMode={options.justifyMode as never}
      textMode={options.textMode as never}
      disableWideLayout={!options.wideLayout}
      text={options.text}
      {...{ count, width, height, alignmentFactors, theme }}
    />
  );
  return (
    <VizRepeater
      getValues={getValues}
      renderValue={one}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={props.frames}
      itemSpacing={3}
      autoGrid
      orientation={options.orientation}
      renderCounter={0}
      width={props.width}
      height={props.height}
    />
  );
}

function Bars(props: Props) {
  const theme = useTheme2();
  const options = props.panel.options as unknown as BarGaugeOptions;
  const one = ({ value, width, height, orientation, alignmentFactors }: One) => (
    <BarGauge
      value={value.display}
      field={value.field}
      display={value.view?.getFieldDisplayProcessor(value.colIndex ?? 0)}
      displayMode={options.displayMode}
      showUnfilled={options.showUnfilled}
      valueDisplayMode={options.valueMode}
      namePlacement={options.namePlacement}
      text={options.text}
      isOverflow={false}
      {...{ width, height, orientation, alignmentFactors, theme }}
    />
  );
  return (
    <VizRepeater
      getValues={useValues(props)}
      renderValue={one}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      source={props.frames}
      itemSpacing={options.displayMode === BarGaugeDisplayMode.Lcd ? 2 : 10}
      orientation={options.orientation ?? VizOrientation.Auto}
      minVizWidth={options.minVizWidth ?? 8}
      minVizHeight={options.minVizHeight ?? 16}
      maxVizHeight={options.maxVizHeight ?? 300}
      renderCounter={0}
      width={props.width}
      height={props.height}
    />
  );
}

function Lines({ frames, panel, timeRange, timeZone, width, height }: Props) {
  const { legend } = panel.options as unknown as TimeSeriesOptions;
  return <TimeSeries {...{ frames, timeRange, timeZone, width, height, legend }} />;
}

function Rows({ frames, width, height }: Props) {
  return frames[0] ? <Table data={frames[0]} width={width} height={height} /> : null;
}

/** What draws a panel, by its type. */
export const VISUALIZATIONS: Record<string, ComponentType<Props>> = {
  bargauge: Bars,
  heatmap: Heatmap,
  stat: Stat,
  table: Rows,
  timeseries: Lines,
};
