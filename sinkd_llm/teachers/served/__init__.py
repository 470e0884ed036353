"""A teacher on a server that speaks the protocol of OpenAI: vLLM, SGLang, llama.cpp, or an API that is paid for."""
