// SPDX-License-Identifier: Apache-2.0
// What encoding and checking a control message costs.
#include <benchmark/benchmark.h>

#include <string>

#include "wire_cases.h"

namespace {

void Encode(benchmark::State &state, const wire_case *c)
{
	size_t bytes = 0;

	c->prepare();
	for (auto _ : state)
		benchmark::DoNotOptimize(bytes = c->encode());
	state.SetBytesProcessed(static_cast<int64_t>(bytes * state.iterations()));
}

void Decode(benchmark::State &state, const wire_case *c)
{
	c->prepare();
	size_t bytes = c->encode();

	for (auto _ : state) {
		if (c->decode()) {
			state.SkipWithError("refused");
			break;
		}
		benchmark::ClobberMemory();
	}
	state.SetBytesProcessed(static_cast<int64_t>(bytes * state.iterations()));
}

}  // namespace

int main(int argc, char **argv)
{
	for (const wire_case *c = wire_cases; c->name; c++) {
		benchmark::RegisterBenchmark((std::string("encode/") + c->name).c_str(), Encode, c);
		benchmark::RegisterBenchmark((std::string("decode/") + c->name).c_str(), Decode, c);
	}
	benchmark::Initialize(&argc, argv);
	benchmark::RunSpecifiedBenchmarks();
	return 0;
}
