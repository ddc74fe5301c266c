from .clients import AsyncClient as AsyncClient
from .clients import Client as Client
from .results import RemoteDraw as RemoteDraw
from .results import RemoteEstimate as RemoteEstimate
from .results import RemoteGradient as RemoteGradient
from .results import RemoteMean as RemoteMean
