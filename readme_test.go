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

// mustFail is a line "! command": the shell's -e does not look at it.
var mustFail = regexp.MustCompile(`(?m)^! (.*?)(\s+#.*)?$`)

// TestDocumentsRun runs the shell blocks of the README and the guide, each in a
// host of its own, as a reader would type them. A command that fails fails the
// test; "!" says that one must.
func TestDocumentsRun(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, "./cmd/berth")
	files, err := filepath.Glob("docs/guide/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		blocks := block.FindAllStringSubmatch(string(text), -1)
		if len(blocks) != strings.Count(string(text), "<!-- test:") || len(blocks) == 0 {
			t.Errorf("%s: %d blocks can be run of %d that are to be", file, len(blocks), strings.Count(string(text), "<!-- test:"))
		}
		for _, b := range blocks {
			t.Run(filepath.Base(file)+"/"+b[1], func(t *testing.T) {
				t.Parallel()
				h := nettest.NewHost(t)
				before := h.Run(t, "sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
				script := mustFail.ReplaceAllString(b[2], "if $1; then echo \"should have failed: $1\" >&2; exit 1; fi")
				h.Run(t, "bash", "-c", "set -e; export PATH="+bin+":$PATH\n"+script)
				left, err := h.Leftovers()
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range left {
					if !strings.HasPrefix(l, "namespace ") { // the reader's own
						t.Errorf("left: %s", l)
					}
				}
				if after := h.Run(t, "sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"); after != before {
					t.Errorf("forwarding was %s and is %s", before, after)
				}
			})
		}
	}
}

// TestExamples runs the programs of examples/.
func TestExamples(t *testing.T) {
	h := nettest.NewHost(t)
	bin := t.TempDir()
	build(t, bin, "./examples/connect")
	h.Run(t, "ip", "netns", "add", "ns1")
	out := h.Run(t, filepath.Join(bin, "connect"), "/run/netns/ns1")
	if want := "eth0 has [172.17.0.2/16]; port 8888 of the host leads to 172.17.0.2:80\n"; out != want {
		t.Errorf("examples/connect says %q, want %q", out, want)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```go\n(.*?)```").FindStringSubmatch(string(readme))
	program, err := os.ReadFile("examples/connect/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if code == nil || !strings.Contains(strings.ReplaceAll(string(program), "\n\t", "\n"), code[1]) {
		t.Error("the Go code in README.md is not that of examples/connect")
	}
}

// TestLinksLead looks whether the documents' links to files lead anywhere.
func TestLinksLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(text), -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		}
	}
}

// build builds a program of the module into dir.
func build(t *testing.T, dir, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, out)
	}
}
