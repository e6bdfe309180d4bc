"""Object stores (S3) from which models are imported."""

from __future__ import annotations

from uuid import UUID

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from clavier.api.common.idempotency import idempotent
from clavier.api.native.fields import Strict, Text
from clavier.api.native.nouns.common import Owned
from clavier.api.native.schema import operation
from clavier.api.native.views import NativeView
from models_app.object_stores import access_object_store, create_object_store, delete_object_store, visible_stores


class ObjectStoreItem(Owned):
    """A store; its secret is never shown."""

    name = serializers.CharField()
    endpoint_url = serializers.CharField()
    region = serializers.CharField()
    access_key = serializers.CharField()


class NewObjectStore(Strict):
    name = Text(max_length=100, help_text="Models are then imported from `name/bucket/prefix`, with the source s3.")
    endpoint_url = Text(max_length=500, help_text="`https://s3.example`; the operator allows hosts.")
    access_key = Text(max_length=1000)
    secret_key = Text(max_length=1000, write_only=True)
    region = Text(required=False, allow_blank=True, max_length=100)


class ObjectStoresView(NativeView):
    @operation("list_object_stores", "models", "List object stores", page_of=ObjectStoreItem)
    def get(self, request: Request) -> Response:
        """Newest first."""
        self.filters()
        return self.page(visible_stores(self.actor), ObjectStoreItem)

    @operation("create_object_store", "models", "Add an object store", body=NewObjectStore, answer=ObjectStoreItem,
               status=201, errors=(409, 422))  # fmt: skip
    @idempotent()
    def post(self, request: Request) -> Response:
        """Its secret is kept sealed."""
        store = create_object_store(actor=self.actor, **self.body(NewObjectStore))
        return Response(ObjectStoreItem(store).data, status=201)


class ObjectStoreView(NativeView):
    @operation("get_object_store", "models", "An object store", answer=ObjectStoreItem, errors=(404,))
    def get(self, request: Request, store_id: UUID) -> Response:
        """Without its secret."""
        return Response(ObjectStoreItem(access_object_store(self.actor, store_id)).data)

    @operation("delete_object_store", "models", "Forget an object store", status=204, errors=(404,))
    def delete(self, request: Request, store_id: UUID) -> Response:
        """What was imported from it stays."""
        delete_object_store(actor=self.actor, store=access_object_store(self.actor, store_id))
        return Response(status=204)
