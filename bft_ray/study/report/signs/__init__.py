"""Signs of trouble in the records of a study, each with its remedy: pure functions that `bft_ray.study.report.diagnoses` calls."""
