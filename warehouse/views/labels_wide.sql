-- scan x labeller: the 18 labels side by side, null if unknown. 'published' is a labeller too
select
    scan_id,
    split,
    labeller_id,
    max(value) filter (abnormality = 'Medical material') as medical_material,
    max(value) filter (abnormality = 'Arterial wall calcification') as arterial_wall_calcification,
    max(value) filter (abnormality = 'Cardiomegaly') as cardiomegaly,
    max(value) filter (abnormality = 'Pericardial effusion') as pericardial_effusion,
    max(value) filter (abnormality = 'Coronary artery wall calcification') as coronary_artery_wall_calcification,
    max(value) filter (abnormality = 'Hiatal hernia') as hiatal_hernia,
    max(value) filter (abnormality = 'Lymphadenopathy') as lymphadenopathy,
    max(value) filter (abnormality = 'Emphysema') as emphysema,
    max(value) filter (abnormality = 'Atelectasis') as atelectasis,
    max(value) filter (abnormality = 'Lung nodule') as lung_nodule,
    max(value) filter (abnormality = 'Lung opacity') as lung_opacity,
    max(value) filter (abnormality = 'Pulmonary fibrotic sequela') as pulmonary_fibrotic_sequela,
    max(value) filter (abnormality = 'Pleural effusion') as pleural_effusion,
    max(value) filter (abnormality = 'Mosaic attenuation pattern') as mosaic_attenuation_pattern,
    max(value) filter (abnormality = 'Peribronchial thickening') as peribronchial_thickening,
    max(value) filter (abnormality = 'Consolidation') as consolidation,
    max(value) filter (abnormality = 'Bronchiectasis') as bronchiectasis,
    max(value) filter (abnormality = 'Interlobular septal thickening') as interlobular_septal_thickening
from all_labels
group by scan_id, split, labeller_id
