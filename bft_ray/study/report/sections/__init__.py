"""The parts of a study's page, each from what is known of the study (`bft_ray.study.kept.Known`)."""
