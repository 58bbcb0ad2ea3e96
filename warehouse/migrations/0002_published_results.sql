-- Macro averages over the abnormalities as restated by the EXACT repository; recall from the same comparison.
-- One row a model, data set and metric; `n` counts what the publication says was scored.
insert into published_results
with printed(model, valid_auroc, valid_f1, valid_accuracy, rad_auroc, rad_f1, rad_accuracy) as (values
    ('CT-Net', .629, .657, .617, .544, .564, .517),
    ('CT-CLIP zero-shot', .731, .707, .668, .629, .637, .592),
    ('CT-CLIP VocabFine', .756, .738, .705, .650, .677, .636),
    ('CT-CLIP ClassFine', .756, .724, .689, .643, .644, .599),
    ('Merlin', .595, .687, .585, .603, .657, .598),
    ('BIUD', .713, .716, .681, .629, .652, .606),
    ('fVLM', .778, .751, .718, .644, .663, .619),
    ('MedVista3D', .782, .770, .745, .710, .681, .668),
    ('EXACT zero-shot', .830, .836, .768, .728, .731, .677),
    ('EXACT fine-tuned', .833, .836, .769, .734, .737, .682)
),
results(model, dataset, metric, value) as (
    select model, unnest(['ct-rate-valid', 'ct-rate-valid', 'ct-rate-valid', 'rad-chestct', 'rad-chestct', 'rad-chestct']),
           unnest(['auroc', 'weighted_f1', 'accuracy', 'auroc', 'weighted_f1', 'accuracy']),
           unnest([valid_auroc, valid_f1, valid_accuracy, rad_auroc, rad_f1, rad_accuracy])
    from printed
)
select model, dataset, metric, value, if(dataset = 'ct-rate-valid', 1564, 3630), 'EXACT repository, README' from results
union all
select model, 'ct-rate-valid', 'report_to_volume_recall_at_' || k, value, null, 'EXACT repository, README'
from (values
    ('CT-CLIP zero-shot', 5, .029), ('CT-CLIP zero-shot', 10, .050), ('CT-CLIP zero-shot', 50, .180), ('CT-CLIP zero-shot', 100, .287),
    ('SPECTRE', 5, .175), ('SPECTRE', 10, .255), ('SPECTRE', 50, .489), ('SPECTRE', 100, .599)
) as recall(model, k, value);
