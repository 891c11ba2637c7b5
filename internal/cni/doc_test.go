package cni

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/cni.md")

// TestKeysAreDocumented holds docs/cni.md against the keys that are decoded.
func TestKeysAreDocumented(t *testing.T) {
	const file, mark = "../../docs/cni.md", "go test ./internal/cni -update -->\n"
	var b strings.Builder
	type section struct {
		title string
		keys  map[string]key
	}
	parts := []section{
		{"Of the configuration", topKeys}, {"Of `ipam`, where `type` is `host-local` or not there", ipamKeys},
		{"Of `runtimeConfig`: capabilities", runtimeKeys}, {"Of `CNI_ARGS`", argKeys},
	}
	for _, name := range DropIns() {
		flat := map[string]key{}
		for table, keys := range dropIns[name].keys {
			for name, k := range keys {
				flat[strings.TrimPrefix(table+"."+name, ".")] = k
			}
		}
		parts = append(parts, section{"In the place of `" + name + "`", flat})
	}
	for _, part := range parts {
		fmt.Fprintf(&b, "\n### %s\n\n| key | | |\n|---|---|---|\n", part.title)
		for _, v := range []string{same, differs, own, refused} {
			for _, name := range slices.Sorted(maps.Keys(part.keys)) {
				if k := part.keys[name]; k.verdict == v {
					fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, v, k.why)
				}
			}
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	prose, table, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatalf("%s: no line that ends with %q", file, mark)
	}
	if *update {
		if err := os.WriteFile(file, []byte(prose+mark+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if table != b.String() {
		t.Errorf("%s is not current: go test ./internal/cni -update", file)
	}
	for _, code := range []uint{codeVersion, codeUnsupported, codeUnknown, codeEnvironment, codeIO, codeDecode, codeConfig, codeNetNS, codeAgain, codeExists, codeConflict, codeDiffers, codeInternal} {
		if !strings.Contains(prose, fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("%s: no code %d", file, code)
		}
	}
}
