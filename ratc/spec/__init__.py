"""The models of the files that people write: experiments, clusters, facts. JSON Schemas are generated from them."""
