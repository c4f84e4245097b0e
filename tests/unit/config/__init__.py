from prefect.client.orchestration import PrefectClient

# Never connected: nothing refers to a block or a variable of a server. Each one made takes a
# fiftieth of a second, for the authorities that it trusts.
CLIENT = PrefectClient("http://127.0.0.1:9/api")
