// SPDX-License-Identifier: Apache-2.0
//
// Zero-page detection: every implementation that this CPU has, against a plain loop
// over words, against memcmp with a zero page, and against the limit, which is
// reading the memory once.
//
// Memory is larger than the caches (Big) or stays in them (Small).  Pages are zero, or
// not in their first word (what guests have mostly), or only in their last word.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include "engine/base/zero.h"

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBig = size_t{1} << 30;
constexpr size_t kSmall = size_t{256} << 10;

enum Content { kZero, kFirstWord, kLastWord };
const char *const kContentNames[] = {"zero", "first_word", "last_word"};

uint8_t *memory()
{
	static uint8_t *p = [] {
		void *m = mmap(nullptr, kBig, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (m == MAP_FAILED)
			abort();
		return static_cast<uint8_t *>(m);
	}();
	return p;
}

void fill(uint8_t *p, size_t size, Content content)
{
	for (size_t at = 0; at < size; at += kPage) {
		memset(p + at, 0, kPage);
		if (content == kFirstWord)
			p[at] = 1;
		if (content == kLastWord)
			p[at + kPage - 1] = 1;
	}
}

using Check = bool (*)(const void *);

bool naive_is_zero(const void *page)
{
	auto *w = static_cast<const volatile uint64_t *>(page); // word by word, as written
	for (size_t i = 0; i < kPage / 8; i++)
		if (w[i])
			return false;
	return true;
}

bool memcmp_is_zero(const void *page)
{
	static const uint8_t zero[kPage] = {0};
	return !memcmp(page, zero, kPage);
}

// Not an answer to the question: what reading alone costs.
bool just_read(const void *page)
{
	benchmark::DoNotOptimize(memchr(page, 0xa5, kPage)); // a byte that is not there
	return false;
}

void run(benchmark::State &state, const char *force, Check check, Content content, size_t size)
{
	if (force && lm_zero_force(force)) {
		state.SkipWithError("not on this CPU");
		return;
	}
	uint8_t *p = memory();
	fill(p, size, content);
	size_t at = 0, pages = 0;
	for (auto _ : state) {
		for (int i = 0; i < 16; i++) {
			benchmark::DoNotOptimize(check(p + at));
			at = at + kPage == size ? 0 : at + kPage;
		}
		pages += 16;
	}
	state.SetBytesProcessed(static_cast<int64_t>(pages * kPage));
	state.SetItemsProcessed(static_cast<int64_t>(pages));
}

void add(const std::string &name, const char *force, Check check)
{
	for (size_t size : {kSmall, kBig})
		for (Content c : {kZero, kFirstWord, kLastWord})
			benchmark::RegisterBenchmark(
				(name + "/" + kContentNames[c] + (size == kBig ? "/memory" : "/cache")).c_str(),
				[=](benchmark::State &s) { run(s, force, check, c, size); });
}

} // namespace

int main(int argc, char **argv)
{
	for (unsigned i = 0; const char *name = lm_zero_impl_list(i); i++)
		add(name, name, lm_page_is_zero);
	add("naive_loop", nullptr, naive_is_zero);
	add("memcmp", nullptr, memcmp_is_zero);
	add("read_limit", nullptr, just_read);
	benchmark::Initialize(&argc, argv);
	if (benchmark::ReportUnrecognizedArguments(argc, argv))
		return 1;
	benchmark::RunSpecifiedBenchmarks();
	return 0;
}
