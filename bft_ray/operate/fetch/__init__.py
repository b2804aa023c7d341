"""All that configs need from the hub, brought to where machines without internet read it."""
