// Where is each panel? Grafana's grid of 24 columns, with every row unfolded.
import type { GridPos, Panel, RowPanel } from '@grafana/schema';

const COLUMNS = 24;
const ROW_HEIGHT = 30;
const GAP = 8;

export interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

export interface Placed {
  panel: Panel | RowPanel;
  box: Box;
}

function box({ x, y, w, h }: GridPos, width: number): Box {
  const column = (width + GAP) / COLUMNS;
  const [left, right] = [x, x + w].map((edge) => Math.round(edge * column));
  const [top, height] = [y, h].map((rows) => rows * (ROW_HEIGHT + GAP));
  return { left: left!, top: top!, width: right! - left! - GAP, height: height! - GAP };
}

function bottom(panels: Panel[]): number {
  return Math.max(0, ...panels.map(({ gridPos }) => (gridPos ? gridPos.y + gridPos.h : 0)));
}

/** Place all panels on so many pixels. The panels of a folded row push down what is below it, as a click would. */
export function place(panels: Array<Panel | RowPanel>, width: number): Placed[] {
  const placed: Placed[] = [];
  let pushed = 0;
  const put = (panel: Panel | RowPanel) => {
    const at = panel.gridPos ?? { x: 0, y: 0, w: COLUMNS, h: 8 };
    placed.push({ panel, box: box({ ...at, y: at.y + pushed }, width) });
  };
  for (const panel of panels) {
    put(panel);
    if (panel.type === 'row' && 'panels' in panel && panel.panels.length) {
      const below = (panel.gridPos?.y ?? 0) + 1;
      const first = Math.min(...panel.panels.map(({ gridPos }) => gridPos?.y ?? below));
      pushed += below - first;
      panel.panels.forEach(put);
      pushed += bottom(panel.panels) - below;
    }
  }
  return placed;
}
