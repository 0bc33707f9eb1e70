"""The models of what people write: experiments, clusters, facts. The JSON Schemas are generated from them."""
