-- report page of the newest CT-CLIP
select pages.path
from current_pages as pages
join current_models using (model_id)
where kind = 'ct-clip'
order by pages.run_id desc
limit 1
