package berth_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"berth/internal/nettest"
)

// block is a fenced block of shell behind a comment that names it.
var block = regexp.MustCompile("(?s)<!-- test: ([a-z-]+) -->\n```sh\n(.*?)```")

// mustFail is a line "! command": the shell's -e does not look at it.
var mustFail = regexp.MustCompile(`(?m)^! (.*?)(\s+#.*)?$`)

// prepare is what makes a host what a document says it is.
var prepare = map[string]string{
	// An /etc/cni of its own needs a place, and the machine may have none.
	"cni.md": "mkdir /run/upper /run/work; mount -t overlay etc /etc -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work; mount -t tmpfs opt /opt; rm -rf /etc/cni\n",
}

// TestDocumentsRun runs the shell blocks of the README and the guide, each in a
// host of its own, as a reader would type them. A command that fails fails the
// test; "!" says that one must.
func TestDocumentsRun(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, "./cmd/berth", "./cmd/berth-cni")
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
				h.Run(t, "bash", "-c", "set -e; export PATH="+bin+":$PATH\n"+prepare[filepath.Base(file)]+script)
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

// exampleSays is what the scripts of examples/ print, as regular expressions.
var exampleSays = map[string]string{
	"boxed-web": `== it answers .*
hello from the box
== it writes .*
index\.html
CapEff:	0000000000000000
== what takes .*
exit status 137
exit status 2
hello from the box
== this is left of it
web
Serving HTTP (?s:.*)
web: Exited \(0\) .*
`,
	"two-tiers": `NAMES     NETWORKS     PORTS
web       back,front   0\.0\.0\.0:8080->80/tcp
data      back         
== the world .*
in stock: 7 apples, 5 pears
== data reaches .*
== who is on front .*
exit status 28
berth: .*
exit status 1
`,
	"blue-green": `80/tcp -> 0\.0\.0\.0:8080
blue
Complete requests:      10000
Failed requests:        0
green
blue answered \d+, green \d+
`,
	"ci-job": `== the tests pass
exit status 0
== somebody .*
exit status 1
== a job writes .*
built
exit status 1
no such program here
== it has no network .*
lo .*
exit status 137
`,
}

// TestExampleScripts runs the scripts of examples/, each in a host of its own.
func TestExampleScripts(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, "./cmd/berth")
	scripts, err := filepath.Glob("examples/*-*")
	if err != nil || len(scripts) != len(exampleSays) {
		t.Fatalf("there are %q, %d are expected: %v", scripts, len(exampleSays), err)
	}
	for _, script := range scripts {
		t.Run(filepath.Base(script), func(t *testing.T) {
			t.Parallel()
			h := nettest.NewHost(t)
			before := h.Run(t, "findmnt", "-rn", "-o", "TARGET")
			out := h.Run(t, "env", "PATH="+bin+":"+os.Getenv("PATH"), script)
			if want := exampleSays[filepath.Base(script)]; !regexp.MustCompile(`\A` + want + `\z`).MatchString(out) {
				t.Errorf("it says %q, want %q", out, want)
			}
			if m := regexp.MustCompile(`blue answered (\d+), green (\d+)`).FindStringSubmatch(out); m != nil {
				t.Log(m[0])
				blue, _ := strconv.Atoi(m[1])
				green, _ := strconv.Atoi(m[2])
				if blue < 2500 || green == 0 || blue+green != 10_000 {
					t.Errorf("%s: want 10000 of both", m[0])
				}
			}
			left, err := h.Leftovers()
			if err != nil || len(left) > 0 {
				t.Errorf("left: %q %v", left, err)
			}
			// ip-netns(8) keeps its directory mounted, and so does Berth.
			after := strings.ReplaceAll(h.Run(t, "findmnt", "-rn", "-o", "TARGET"), "/run/netns\n", "")
			if after != before {
				t.Errorf("mounts were %s and are %s", before, after)
			}
			if out := h.Run(t, "find", "/run/berth/containers", "/run/berth/exits", "/var/lib/berth/containers", "-mindepth", "1"); out != "" {
				t.Errorf("left: %s", out)
			}
		})
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
func build(t *testing.T, dir string, pkgs ...string) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"build", "-o", dir + string(filepath.Separator)}, pkgs...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkgs, err, out)
	}
}
