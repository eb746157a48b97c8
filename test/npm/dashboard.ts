// The type of a dashboard's file, made of Grafana's own types. Two things differ in a file: the members of an enum are
// written as their values, and what a panel leaves out of its options is as that kind of panel has it.
import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel } from '@grafana/grafana-foundation-sdk/dashboard';
import type { GraphFieldConfig, TableFieldOptions } from '@grafana/grafana-foundation-sdk/common';
import type { Dataquery } from '@grafana/grafana-foundation-sdk/prometheus';
import type * as stat from '@grafana/grafana-foundation-sdk/stat';
import type * as statetimeline from '@grafana/grafana-foundation-sdk/statetimeline';
import type * as table from '@grafana/grafana-foundation-sdk/table';
import type * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';

type IsAny<T> = 0 extends 1 & T ? true : false;

type Written<T> =
  IsAny<T> extends true ? T
  : T extends string ? (string extends T ? T : `${T}`)
  : T extends (infer E)[] ? Written<E>[]
  : T extends object ? { [K in keyof T as T[K] extends Function ? never : K]: Written<T[K]> }
  : T;

type Optional<T> = T extends (infer E)[] ? E[] : T extends object ? { [K in keyof T]?: Optional<T[K]> } : T;

type PanelOf<Type extends string, Options, Custom> = Written<Omit<Panel, 'type' | 'options' | 'targets' | 'fieldConfig'>> & {
  type: Type;
  options?: Optional<Written<Options>>;
  targets: Written<Dataquery>[];
  fieldConfig: {
    defaults: Written<Omit<FieldConfig, 'custom'>> & { custom?: Optional<Written<Custom>> };
    overrides: { matcher: { id: string; options: string }; properties: { id: string; value: unknown }[] }[];
  };
};

export type DashboardFile = Written<Omit<Dashboard, 'panels' | 'annotations'>> & {
  annotations: { list: Written<Omit<AnnotationQuery, 'target'>>[] };
  panels: (
    | Written<RowPanel>
    | PanelOf<'stat', stat.Options, {}>
    | PanelOf<'state-timeline', statetimeline.Options, statetimeline.FieldConfig>
    | PanelOf<'table', table.Options, TableFieldOptions>
    | PanelOf<'timeseries', timeseries.Options, GraphFieldConfig>
  )[];
};
