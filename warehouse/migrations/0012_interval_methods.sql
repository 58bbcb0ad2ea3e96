-- Method of an interval, and the mark of labels that too few patients have for its coverage to be known.
-- Rows of versions before have neither: their intervals are bootstrap percentiles.
alter table metrics add column ci_method varchar;
alter table metrics add column has_few_patients boolean;
alter table comparisons add column ci_method varchar;
alter table comparisons add column has_few_patients boolean;
