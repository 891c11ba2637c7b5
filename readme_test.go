package berth_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"berth/internal/nettest"
)

// block is a fenced block of shell behind a comment that names it.
var block = regexp.MustCompile("(?s)<!-- test: ([a-z-]+) -->\n```sh\n(.*?)```")

// TestDocumentsRun runs the shell blocks of the documents, each in a host of
// its own, as a reader would type them. A command that fails fails the test;
// "!" says that one must.
func TestDocumentsRun(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "berth"), "berth/cmd/berth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	guides, err := filepath.Glob("docs/guide/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(guides, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range block.FindAllStringSubmatch(string(text), -1) {
			t.Run(filepath.Base(file)+"/"+b[1], func(t *testing.T) {
				t.Parallel()
				h := nettest.NewHost(t)
				// "! command" does not stop a shell under -e; a trap tells.
				script := "set -eE; export PATH=" + dir + ":$PATH\n" + regexp.MustCompile(`(?m)^! (.*?)(\s+#.*)?$`).ReplaceAllString(b[2], "if $1; then echo \"should have failed: $1\" >&2; exit 1; fi")
				h.Run(t, "bash", "-c", script)
				left, err := h.Leftovers()
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range left {
					if !strings.HasPrefix(l, "namespace ") { // the reader's own
						t.Errorf("left: %s", l)
					}
				}
			})
		}
	}
}
