// What stands in a query, or in a title, where it names a variable?

const REFERENCE = /\$\{(\w+)(?::\w+)?\}|\$(\w+)/g;

/** One variable: what a reader sees, and what stands in a query. */
export interface Value {
  label: string;
  text: string;
  promql: string;
}

export type Values = Record<string, Value>;

export function literal(name: string, text: string): Values {
  return { [name]: { label: '', text, promql: text } };
}

/** Return a query with its variables replaced. */
export function interpolate(query: string, values: Values): string {
  return query.replace(REFERENCE, (reference, braced?: string, bare?: string) => {
    const value = values[braced ?? bare ?? ''];
    if (!value) {
      throw new Error(`the dashboard has no variable ${reference}`);
    }
    return value.promql;
  });
}

/** Return a title with its variables replaced; what is none stays. */
export function interpolateText(text: string, values: Values): string {
  return text.replace(
    REFERENCE, (reference, braced?: string, bare?: string) => values[braced ?? bare ?? '']?.text ?? reference,
  );
}
