"""The dashboard: pages that look on, each of them the public REST and events seen through
`ClusterView` and `Hub`. NiceGUI is loaded here and nowhere else."""
