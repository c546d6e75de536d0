"""The dashboard: pages that look on and act, each of them the public REST and events seen through
`ClusterView` and `Hub`. NiceGUI is loaded here and nowhere else."""
