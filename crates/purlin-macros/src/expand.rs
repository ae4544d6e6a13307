//! What is written for a block that was understood.

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote};
use syn::{Path, PathArguments, Type};

use crate::{
    method::{Arg, Method, Role, without_self},
    server::{Refused, Server, call_site},
};

pub(crate) fn expand(server: &Server) -> TokenStream {
    let block = &server.block;
    let messages = server.messages().map(|method| message(server, method));
    let lifecycle = lifecycle(server);
    let remote = remote(server);
    let handle = handle(server);
    quote! {
        #block
        #(#messages)*
        #lifecycle
        #remote
        #handle
    }
}

/// The error, and enough of a server that its own types do not lead to more of them.
pub(crate) fn refused(krate: &Path, refused: &Refused) -> TokenStream {
    let (error, block) = (refused.error.to_compile_error(), &refused.block);
    if !refused.could_be_server {
        return error;
    }
    let ty = &block.self_ty;
    quote! {
        #error
        #block
        impl #krate::Server for #ty {
            const KIND: &'static str = "";
            type Args = ();
            async fn init(
                (): (),
                _: &mut #krate::Context<Self>,
            ) -> ::core::result::Result<Self, #krate::ExitReason> {
                ::core::unreachable!("the block was refused")
            }
        }
    }
}

fn message_name(server: &Server, method: &Method) -> Ident {
    format_ident!("{}{}", server.name, method.camel(), span = method.name.span())
}

/// The call of the user's own method, awaited if it is async.
fn invoke(server: &Server, method: &Method, subject: &TokenStream) -> TokenStream {
    let (ty, name) = (&server.ty, &method.name);
    let receiver = (!matches!(method.role, Role::Init)).then(|| quote!(self,));
    let args = method.args.iter().map(|arg| match arg {
        Arg::Value { name, .. } => quote!(#name),
        Arg::Context => quote!(__ctx),
        Arg::Subject => subject.clone(),
    });
    let wait = method.is_async.then(|| quote!(.await));
    quote!(<#ty>::#name(#receiver #(#args),*) #wait)
}

fn message(server: &Server, method: &Method) -> TokenStream {
    let krate = &server.options.krate;
    let (ty, cfgs, visibility) = (&server.ty, &method.cfgs, &server.visibility);
    let name = message_name(server, method);
    let wire_name = format!("{}.{}", server.kind(), method.name);
    let names: Vec<_> = method.values().map(|(name, _)| name).collect();
    let types: Vec<_> = method.values().map(|(_, ty)| without_self(ty, &server.ty)).collect();
    let field_docs = names.iter().map(|field| format!("The argument `{field}`."));
    let doc = format!("The message behind `{}::{}`.", server.name, method.name);
    let reply = method.output.as_ref().map_or_else(
        || quote!(()),
        |output| {
            let output = without_self(output, &server.ty);
            quote!(#output)
        },
    );
    let serde = (!server.options.local).then(|| {
        let path = quote!(#krate::__private::serde).to_string().replace(' ', "");
        quote! {
            #[derive(#krate::__private::serde::Serialize, #krate::__private::serde::Deserialize)]
            #[serde(crate = #path)]
        }
    });
    let handled = invoke(server, method, &TokenStream::new());
    let now = (!method.is_async).then(|| {
        quote! {
            #[allow(clippy::unit_arg, reason = "written for any method")]
            fn handle_now(
                &mut self,
                __message: #name,
                __ctx: &mut #krate::Context<Self>,
            ) -> ::core::result::Result<#reply, #name> {
                let _ = &__ctx;
                let #name { #(#names),* } = __message;
                ::core::result::Result::Ok(#handled)
            }
        }
    });
    let debug_name = Literal::string(&name.to_string());
    quote! {
        #(#cfgs)*
        #[doc = #doc]
        #[allow(
            private_interfaces, unreachable_pub, dead_code, clippy::unsafe_derive_deserialize,
            reason = "a message is as visible as the most visible method, used or not"
        )]
        #serde
        #visibility struct #name {
            #(
                #[doc = #field_docs]
                pub #names: #types,
            )*
        }

        #(#cfgs)*
        impl ::core::fmt::Debug for #name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(#debug_name)
            }
        }

        #(#cfgs)*
        impl #krate::Message for #name {
            type Reply = #reply;
            const NAME: &'static str = #wire_name;

            fn bytes(&self) -> usize {
                #[allow(unused_imports, reason = "which of them is used depends on the fields")]
                use #krate::__private::{HeapOfBytes as _, HeapOfItems as _, HeapUnknown as _};
                ::core::mem::size_of::<Self>()
                    #(+ (&&#krate::__private::Heap(&self.#names)).heap_bytes())*
            }
        }

        #(#cfgs)*
        impl #krate::Handle<#name> for #ty {
            #[allow(
                clippy::unused_async, clippy::used_underscore_binding, clippy::semicolon_if_nothing_returned,
                reason = "written for any method"
            )]
            async fn handle(
                &mut self,
                __message: #name,
                __ctx: &mut #krate::Context<Self>,
            ) -> #reply {
                let _ = &__ctx;
                let #name { #(#names),* } = __message;
                #handled
            }

            #now
        }
    }
}

fn args_type(server: &Server, init: &Method) -> TokenStream {
    let types: Vec<_> = init.values().map(|(_, ty)| without_self(ty, &server.ty)).collect();
    match &types[..] {
        [one] => quote!(#one),
        types => quote!((#(#types),*)),
    }
}

fn args_pattern(init: &Method) -> TokenStream {
    let names: Vec<_> = init.values().map(|(name, _)| name).collect();
    match &names[..] {
        [one] => quote!(#one),
        names => quote!((#(#names),*)),
    }
}

/// Whether a type is written as a `Result`.
fn is_result(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    path.path.segments.last().is_some_and(|last| {
        last.ident == "Result" && matches!(last.arguments, PathArguments::AngleBracketed(_))
    })
}

fn lifecycle(server: &Server) -> TokenStream {
    let krate = &server.options.krate;
    let ty = &server.ty;
    let kind = server.kind();
    let init = server.role(Role::Init).next().expect("checked: there is one init");
    let (args, pattern) = (args_type(server, init), args_pattern(init));
    let made = invoke(server, init, &TokenStream::new());
    let made = if init.output.as_ref().is_some_and(is_result) {
        quote!(#made.map_err(#krate::IntoExitReason::into_exit_reason)?)
    } else {
        made
    };
    let timers = server.methods.iter().filter_map(|method| match method.role {
        Role::Timer(Some(every)) => {
            let (cfgs, key) = (&method.cfgs, method.name.to_string());
            let millis =
                u64::try_from(every.as_millis()).expect("parsed from a u64 of milliseconds");
            Some(quote! {
                #(#cfgs)*
                __ctx.timer_every(#key, ::core::time::Duration::from_millis(#millis));
            })
        }
        _ => None,
    });
    let info = info(server);
    let terminate = server.role(Role::Terminate).next().map(|method| {
        let ended = invoke(server, method, &quote!(__reason));
        quote! {
            async fn terminate(
                &mut self,
                __reason: &#krate::ExitReason,
                __ctx: &mut #krate::Context<Self>,
            ) {
                let _ = (&__reason, &__ctx);
                #ended;
            }
        }
    });
    let summary = server.role(Role::Summary).next().map(|method| {
        let told = invoke(server, method, &TokenStream::new());
        quote! {
            fn summary(&self) -> ::std::string::String {
                #told
            }
        }
    });
    quote! {
        #[allow(
            clippy::unused_async, clippy::used_underscore_binding, clippy::unused_unit,
            reason = "written for any block"
        )]
        impl #krate::Server for #ty {
            const KIND: &'static str = #kind;
            type Args = #args;

            async fn init(
                #pattern: Self::Args,
                __ctx: &mut #krate::Context<Self>,
            ) -> ::core::result::Result<Self, #krate::ExitReason> {
                let __server = #made;
                #(#timers)*
                ::core::result::Result::Ok(__server)
            }

            #info
            #terminate
            #summary
        }
    }
}

fn info(server: &Server) -> Option<TokenStream> {
    let krate = &server.options.krate;
    let timers: Vec<_> = server
        .methods
        .iter()
        .filter(|method| matches!(method.role, Role::Timer(_)))
        .map(|method| {
            let (cfgs, key) = (&method.cfgs, method.name.to_string());
            let fired = invoke(server, method, &TokenStream::new());
            quote!(#(#cfgs)* #krate::Info::Timer(#key) => { #fired; })
        })
        .collect();
    let informed = server.role(Role::Info).next();
    if timers.is_empty() && informed.is_none() {
        return None;
    }
    let rest = informed.map_or_else(
        || quote!(__other => ::core::mem::drop(__other),),
        |method| {
            let informed = invoke(server, method, &quote!(__other));
            quote!(__other => { #informed; })
        },
    );
    Some(quote! {
        async fn info(&mut self, __info: #krate::Info, __ctx: &mut #krate::Context<Self>) {
            let _ = &__ctx;
            match __info {
                #(#timers)*
                #rest
            }
        }
    })
}

fn remote(server: &Server) -> Option<TokenStream> {
    if server.options.local {
        return None;
    }
    let krate = &server.options.krate;
    let ty = &server.ty;
    let arms = server.messages().map(|method| {
        let (cfgs, name) = (&method.cfgs, message_name(server, method));
        quote! {
            #(#cfgs)*
            <#name as #krate::Message>::KIND => __inbound.decode::<Self, #name>(__payload),
        }
    });
    Some(quote! {
        impl #krate::RemoteServer for #ty {
            fn receive(
                __kind: #krate::MessageKind,
                __payload: &[u8],
                __inbound: #krate::Inbound,
            ) -> ::core::result::Result<#krate::Envelope<Self>, #krate::Undelivered> {
                let _ = __payload;
                match __kind {
                    #(#arms)*
                    _ => ::core::result::Result::Err(__inbound.unknown::<Self>(__kind)),
                }
            }
        }
    })
}

fn handle(server: &Server) -> TokenStream {
    let krate = &server.options.krate;
    let (ty, visibility) = (&server.ty, &server.visibility);
    let name = server
        .options
        .handle
        .clone()
        .unwrap_or_else(|| format_ident!("{}Handle", server.name, span = call_site()));
    let (address, spawn) = if server.options.local {
        (quote!(#krate::ProcessRef<#ty>), quote!(spawn))
    } else {
        (quote!(#krate::Address<#ty>), quote!(spawn_remote))
    };
    let doc = if server.options.local {
        format!("Talks to a `{}` process on this node. Cheap to clone.", server.name)
    } else {
        format!("Talks to a `{}` process, on this node or another. Cheap to clone.", server.name)
    };
    let init = server.role(Role::Init).next().expect("checked: there is one init");
    let names: Vec<_> = init.values().map(|(name, _)| name).collect();
    let types: Vec<_> = init.values().map(|(_, ty)| without_self(ty, &server.ty)).collect();
    let pattern = args_pattern(init);
    let methods = server.messages().map(|method| handle_method(server, method));
    let from_remote = (!server.options.local).then(|| {
        quote! {
            impl ::core::convert::From<#krate::Address<#ty>> for #name {
                fn from(address: #krate::Address<#ty>) -> Self {
                    Self { address, within: #krate::CALL_WITHIN }
                }
            }

            impl ::core::convert::From<#krate::RemoteRef<#ty>> for #name {
                fn from(process: #krate::RemoteRef<#ty>) -> Self {
                    Self { address: process.into(), within: #krate::CALL_WITHIN }
                }
            }
        }
    });
    quote! {
        #[doc = #doc]
        #[allow(
            private_interfaces, private_bounds, unreachable_pub, dead_code, unnameable_types,
            reason = "a handle is as visible as its most visible method, used or not"
        )]
        #visibility struct #name {
            address: #address,
            within: ::core::time::Duration,
        }

        impl ::core::clone::Clone for #name {
            fn clone(&self) -> Self {
                Self { address: self.address.clone(), within: self.within }
            }
        }

        impl ::core::fmt::Debug for #name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Debug::fmt(&self.address, f)
            }
        }

        impl ::core::convert::From<#krate::ProcessRef<#ty>> for #name {
            fn from(process: #krate::ProcessRef<#ty>) -> Self {
                Self { address: process.into(), within: #krate::CALL_WITHIN }
            }
        }

        #from_remote

        #[allow(
            private_interfaces, unreachable_pub, dead_code, clippy::too_many_arguments,
            reason = "a handle has a method for every message, used or not"
        )]
        impl #name {
            /// Starts the process on this node and waits for its `init`.
            ///
            /// # Errors
            /// `SpawnError`; no process is left behind then.
            #visibility async fn spawn(
                __processes: &#krate::Processes,
                #(#names: #types,)*
            ) -> ::core::result::Result<Self, #krate::SpawnError> {
                Self::spawn_with(__processes, ::core::default::Default::default(), #(#names),*).await
            }

            /// Starts the process on this node with `options`, such as a name, and waits for its
            /// `init`.
            ///
            /// # Errors
            /// `SpawnError`; no process is left behind then.
            #visibility async fn spawn_with(
                __processes: &#krate::Processes,
                __options: #krate::SpawnOptions,
                #(#names: #types,)*
            ) -> ::core::result::Result<Self, #krate::SpawnError> {
                let __process = __processes.#spawn::<#ty>(#pattern, __options).await?;
                ::core::result::Result::Ok(::core::convert::From::from(__process))
            }

            /// The same handle with another deadline for calls; the default is 5 s.
            #[must_use]
            #visibility fn within(&self, within: ::core::time::Duration) -> Self {
                Self { address: self.address.clone(), within }
            }

            /// The process behind the handle, for links, monitors and the trait form.
            #[must_use]
            #visibility fn address(&self) -> &#address {
                &self.address
            }

            /// The identity of the process behind the handle.
            #[must_use]
            #visibility fn pid(&self) -> &#krate::Pid {
                self.address.pid()
            }

            #(#methods)*
        }
    }
}

fn handle_method(server: &Server, method: &Method) -> TokenStream {
    let krate = &server.options.krate;
    let (name, cfgs, docs, visibility) =
        (&method.name, &method.cfgs, &method.docs, &method.visibility);
    let message = message_name(server, method);
    let names: Vec<_> = method.values().map(|(name, _)| name).collect();
    let types: Vec<_> = method.values().map(|(_, ty)| without_self(ty, &server.ty)).collect();
    let default_doc = docs.is_empty().then(|| {
        let doc = format!("Has the process run `{}::{name}`.", server.name);
        quote!(#[doc = #doc])
    });
    let (output, errors, send) = if matches!(method.role, Role::Call) {
        let reply = method.output.as_ref().map_or_else(
            || quote!(()),
            |output| {
                let output = without_self(output, &server.ty);
                quote!(#output)
            },
        );
        (
            quote!(::core::result::Result<#reply, #krate::CallError>),
            "`CallError`, which tells whether the process may have acted.",
            quote!(self.address.call_within(#message { #(#names),* }, self.within).await),
        )
    } else {
        (
            quote!(::core::result::Result<(), #krate::CastError>),
            "`CastError`; nothing was sent then.",
            quote!(self.address.cast(#message { #(#names),* }).await),
        )
    };
    quote! {
        #(#cfgs)*
        #(#docs)*
        #default_doc
        ///
        /// # Errors
        #[doc = #errors]
        #visibility async fn #name(&self, #(#names: #types),*) -> #output {
            #send
        }
    }
}
