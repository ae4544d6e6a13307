%% A plain gen_server that counts what it is sent.
-module(bench_adder).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() ->
    {ok, Adder} = gen_server:start({local, ?MODULE}, ?MODULE, [], []),
    Adder.

init([]) ->
    {ok, 0}.

handle_call({add, Amount}, _From, Sum) -> {reply, Sum + Amount, Sum + Amount};
handle_call({echo, Payload}, _From, Sum) -> {reply, Payload, Sum + 1};
handle_call(total, _From, Sum) -> {reply, Sum, Sum};
handle_call(pid, _From, Sum) -> {reply, self(), Sum}.

handle_cast({add, Amount}, Sum) -> {noreply, Sum + Amount};
handle_cast({count, _Payload}, Sum) -> {noreply, Sum + 1}.
