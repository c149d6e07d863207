"""The client: it trains on the pictures of its site."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from app.task import NETWORKS, train

app = ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train the global model, and return the new weights."""
    config = context.run_config
    model = NETWORKS[str(config["network"])]()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    count = train(
        model,
        str(context.node_config["pictures"]),
        int(config["local-epochs"]),
        float(config["learning-rate"]),
        float(config["momentum"]),
    )
    metrics = MetricRecord({"num-examples": count})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
