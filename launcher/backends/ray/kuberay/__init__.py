"""Ray on Kubernetes, by KubeRay: what `ray.kubernetes` of a cluster file becomes."""
