-- model x volume that an evaluation may use: embedded, current and not excluded
select * exclude (is_excluded)
from embedded_samples
where not is_excluded
