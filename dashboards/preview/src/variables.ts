// What does a dashboard's variable stand for? As Grafana and its Prometheus data source say it.
import type { VariableModel } from '@grafana/schema';

import { interpolate } from './interpolate';
import type { Values } from './interpolate';
import { labelValues } from './prometheus';
import type { TimeSpan } from './prometheus';

const ALL = '$__all';
const LABEL_VALUES = /^label_values\((?:(.+),\s*)?(\w+)\)$/s;

// A regular expression inside of a PromQL string: its backslashes are doubled.
function escapeRegex(value: string): string {
  return value.replace(/\\/g, '\\\\\\\\').replace(/[$^*{}[\]'+?.()|]/g, '\\\\$&');
}

function promql(variable: VariableModel, values: string[]): string {
  if (!variable.multi && !variable.includeAll) {
    return (values[0] ?? '').replace(/\\/g, '\\\\').replace(/"/g, '\\"');
  }
  const escaped = values.map(escapeRegex);
  return escaped.length === 1 ? escaped[0]! : `(${escaped.join('|')})`;
}

function queryOf(variable: VariableModel): string {
  const query = variable.query ?? '';
  return typeof query === 'string' ? query : String(query['query']);
}

async function options(variable: VariableModel, values: Values, span: TimeSpan): Promise<string[]> {
  const asked = LABEL_VALUES.exec(interpolate(queryOf(variable), values));
  if (variable.type !== 'query' || !asked) {
    return queryOf(variable).split(',');
  }
  return labelValues(asked[2]!, asked[1], span);
}

/** Settle the variables in their order, since one may ask for another: as given, as saved, or the first option. */
export async function settle(variables: VariableModel[], given: URLSearchParams, span: TimeSpan): Promise<Values> {
  let values: Values = {};
  for (const variable of variables) {
    const saved = [variable.current?.value ?? []].flat();
    const wanted = given.getAll(`var-${variable.name}`);
    let chosen = wanted.length ? wanted : saved;
    const all = chosen.includes(ALL);
    if (!chosen.length || (all && !variable.allValue)) {
      const found = await options(variable, values, span);
      chosen = all ? found : found.slice(0, 1);
    }
    const value = {
      label: variable.label ?? variable.name,
      text: all ? 'All' : chosen.join(' + '),
      promql: all && variable.allValue ? variable.allValue : promql(variable, chosen),
    };
    values = { ...values, [variable.name]: value };
  }
  return values;
}
