package berth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "berth"

// The layers of the program, lowest first. A package imports its own layer and
// the ones below. What is in no list is a service: it stands beside the engine
// and is handed functions.
var (
	nouns = []string{"berth"}
	// Same input, same output: no disk, no kernel, no clock, no dice.
	pure = []string{"berth/internal/plan", "berth/internal/ipam", "berth/internal/script", "berth/internal/foreign", "berth/internal/zone"}
	// Where the disk and the kernel are.
	edges    = []string{"berth/internal/netns", "berth/internal/nft", "berth/internal/kernel", "berth/internal/store", "berth/internal/crash", "berth/internal/cgroup"}
	engines  = []string{"berth/engine"}
	surfaces = []string{
		"berth/internal/cli", "berth/internal/cni", "berth/internal/api", "berth/internal/dockerapi",
		"berth/internal/dockerdriver", "berth/cmd/berth", "berth/cmd/berth-cni",
	}
	forTests = []string{"berth/internal/nettest"}
)

// A rule keeps an import where it belongs.
type rule struct {
	imports []string // import paths, each with everything below it
	only    []string // packages that may; nil: none of in may
	in      []string // packages the rule is about; nil: all
	why     string
}

var rules = []rule{
	{imports: []string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns"}, only: []string{"berth/internal/kernel", "berth/bench"},
		why: "one package speaks rtnetlink and conntrack, so that one Apply changes the kernel"},
	{imports: []string{"github.com/google/nftables"}, only: []string{"berth/internal/nft", "berth/bench"},
		why: "one package speaks nftables, so that one table has one owner"},
	{imports: []string{"github.com/mdlayher/netlink"}, only: []string{"berth/internal/nft", "berth/internal/kernel"},
		why: "netlink has two users"},
	{imports: []string{"go.etcd.io/bbolt"}, only: []string{"berth/internal/store"},
		why: "the schema and its locks are known in one place"},
	{imports: []string{"golang.org/x/sys"},
		only: []string{
			"berth/internal/kernel", "berth/internal/nft", "berth/internal/netns", "berth/internal/store",
			"berth/internal/crash", "berth/internal/nettest", "berth/internal/cgroup", "berth/internal/rootfs", "berth/internal/image", "berth/bench",
			"berth/internal/cli",   // exec takes the process into a namespace
			"berth/internal/demo",  // makes a private host of its own process
			"berth/internal/oci",   // looks into a root that is not trusted
			"berth/internal/layer", // makes files below a root that is not trusted
			"berth/internal/image", // locks files, and puts what it made on the disk
		},
		why: "system calls are made at the edges"},
	{imports: []string{"github.com/spf13"}, only: []string{"berth/internal/cli", "berth/internal/demo", "berth/cmd"},
		why: "flags and usage are the command line's"},
	{imports: []string{"os/exec"}, only: []string{
		"berth/internal/oci", "berth/internal/nettest", "berth/bench",
		"berth/internal/cli",  // looks up the command of exec
		"berth/internal/cni",  // the program that gives addresses, as the specification says
		"berth/internal/demo", // runs berth itself
	},
		why: "no ip, nft or iptables is run: only a container runtime is"},
	{imports: []string{"github.com/google/go-containerregistry", "github.com/docker/cli"}, only: []string{"berth/internal/image"},
		why: "one package speaks to registries, so that what they say is verified in one place"},
	{imports: []string{"testing", "github.com/rogpeppe", "github.com/google/go-cmp", "pgregory.net/rapid"},
		only: forTests, why: "it is for tests"},
	{imports: forTests, only: forTests, why: "it is for tests"},

	{in: nouns, imports: []string{"os", "syscall", "math/rand", "crypto/rand", module + "/"},
		why: "the nouns are plain data"},
	{in: pure, imports: slices.Concat([]string{"os", "net", "syscall", "math/rand", "crypto/rand", "io/ioutil", "log"}, edges, engines, surfaces),
		why: "it is pure: same input, same output, tested without root"},
	{in: edges, imports: slices.Concat(engines, surfaces), why: "imports go down only"},
	{in: engines, imports: surfaces, why: "imports go down only"},
	{in: surfaces, imports: edges, why: "surfaces have no logic of their own: they ask the engine"},
}

// exempt are imports below a forbidden one that are harmless.
var exempt = []string{"net/netip"}

// A listed package is what go list tells of it.
type listed struct {
	ImportPath, Name, Dir, Doc string
	GoFiles, CgoFiles          []string
	TestGoFiles, XTestGoFiles  []string
	Imports                    []string
}

func TestArchitecture(t *testing.T) {
	pkgs := goList(t)
	for _, v := range slices.Concat(badImports(pkgs), badNames(pkgs), badClocks(t, pkgs), badSysctls(t, pkgs), bigFiles(t, pkgs)) {
		t.Error(v)
	}
}

func goList(t *testing.T) []listed {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go command")
	}
	out, err := exec.Command(tool, "list", "-e", "-json=ImportPath,Name,Dir,Doc,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// badImports lists the imports that break a rule. The tests of a package may
// import what they like.
func badImports(pkgs []listed) (bad []string) {
	for _, p := range pkgs {
		for _, imp := range p.Imports {
			for _, r := range rules {
				about := r.in == nil || slices.Contains(r.in, p.ImportPath)
				if about && below(imp, r.imports) && !slices.Contains(exempt, imp) && !below(p.ImportPath, r.only) {
					bad = append(bad, fmt.Sprintf("%s imports %s: %s", p.ImportPath, imp, r.why))
				}
			}
			if isService(p.ImportPath) && below(imp, slices.Concat(engines, surfaces)) {
				bad = append(bad, fmt.Sprintf("%s imports %s: a service stands beside the engine and is handed functions", p.ImportPath, imp))
			}
		}
	}
	return bad
}

// below reports whether an import path is one of roots or below one.
func below(imp string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool {
		return imp == root || strings.HasPrefix(imp, strings.TrimSuffix(root, "/")+"/")
	})
}

// isService reports whether a package is in no layer. Examples are programs of
// a user.
func isService(pkg string) bool {
	return !slices.Contains(slices.Concat(nouns, pure, edges, engines, surfaces, forTests), pkg) &&
		!below(pkg, []string{"berth/examples", "berth/cmd", "berth/engine", "berth/bench"})
}

// badNames lists packages without a doc comment or with a name that says
// nothing.
func badNames(pkgs []listed) (bad []string) {
	banned := []string{"util", "utils", "common", "helper", "helpers", "types", "manager", "pkg", "misc", "shared", "lib"}
	for _, p := range pkgs {
		if slices.Contains(banned, p.Name) || slices.Contains(banned, path.Base(p.ImportPath)) {
			bad = append(bad, fmt.Sprintf("%s: the name says nothing about what is in it", p.ImportPath))
		}
		if p.Doc == "" && len(p.GoFiles) > 0 {
			bad = append(bad, fmt.Sprintf("%s: no package comment", p.ImportPath))
		}
	}
	return bad
}

// badClocks lists where a pure package asks for the time.
func badClocks(t *testing.T, pkgs []listed) (bad []string) {
	for _, p := range pkgs {
		if !slices.Contains(pure, p.ImportPath) {
			continue
		}
		inspect(t, p, func(at token.Position, n ast.Node) {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker", "Tick"}, sel.Sel.Name) {
				bad = append(bad, fmt.Sprintf("%s: time.%s in a pure package: the caller knows the time", at, sel.Sel.Name))
			}
		})
	}
	return bad
}

// badSysctls lists where another package than kernel names a file of
// /proc/sys/net, which is a second way to change the kernel.
func badSysctls(t *testing.T, pkgs []listed) (bad []string) {
	for _, p := range pkgs {
		if below(p.ImportPath, []string{"berth/internal/kernel", "berth/internal/nettest"}) {
			continue
		}
		inspect(t, p, func(at token.Position, n ast.Node) {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING && strings.Contains(l.Value, "/proc/sys/net") {
				bad = append(bad, fmt.Sprintf("%s: %s: only kernel reads and writes settings of the network", at, l.Value))
			}
		})
	}
	return bad
}

// inspect shows f the syntax of a package without its tests.
func inspect(t *testing.T, p listed, f func(token.Position, ast.Node)) {
	t.Helper()
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			t.Error(err)
			continue
		}
		for n := range ast.Preorder(file) {
			f(set.Position(n.Pos()), n)
		}
	}
}

// bigFiles lists files that nobody reads in one sitting. The budget is 400
// lines; what is half over it has to be cut.
func bigFiles(t *testing.T, pkgs []listed) (bad []string) {
	const most = 600
	for _, p := range pkgs {
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				continue // the compiler tells
			}
			if n := set.File(file.Pos()).LineCount(); n > most && !ast.IsGenerated(file) {
				bad = append(bad, fmt.Sprintf("%s/%s: %d lines; a file has at most %d", p.ImportPath, name, n, most))
			}
		}
	}
	return bad
}

// TestArchitectureRules shows that the rules bite.
func TestArchitectureRules(t *testing.T) {
	for _, tt := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"berth/internal/plan", "net/netip", true},
		{"berth/internal/plan", "berth", true},
		{"berth/internal/script", "berth/internal/plan", true},
		{"berth/internal/plan", "net", false},
		{"berth/internal/ipam", "os", false},
		{"berth/internal/ipam", "math/rand/v2", false},
		{"berth/internal/foreign", "berth/internal/kernel", false},
		{"berth", "berth/engine", false},
		{"berth", "net", true},
		{"berth/internal/kernel", "github.com/vishvananda/netlink/nl", true},
		{"berth/engine", "github.com/vishvananda/netlink", false},
		{"berth/internal/kernel", "github.com/google/nftables", false},
		{"berth/internal/nft", "github.com/google/nftables/expr", true},
		{"berth/internal/nft", "berth/engine", false},
		{"berth/engine", "berth/internal/store", true},
		{"berth/engine", "golang.org/x/sys/unix", false},
		{"berth/engine", "berth/internal/cli", false},
		{"berth/engine", "berth/internal/nettest", false},
		{"berth/internal/cli", "berth/engine", true},
		{"berth/internal/cli", "berth/internal/netns", false},
		{"berth/internal/cli", "github.com/spf13/cobra", true},
		{"berth/internal/dns", "berth/engine", false},
		{"berth/internal/dns", "berth/internal/zone", true},
		{"berth/internal/dns", "os/exec", false},
		{"berth/internal/oci", "os/exec", true},
		{"berth/internal/image", "github.com/google/go-containerregistry/pkg/v1/remote", true},
		{"berth/internal/image", "berth/engine", false},
		{"berth/internal/container", "github.com/google/go-containerregistry/pkg/v1", false},
		{"berth/examples/hello", "berth/engine", true},
		{"berth/cmd/berth", "berth/internal/cli", true},
	} {
		bad := badImports([]listed{{ImportPath: tt.pkg, Imports: []string{tt.imp}}})
		if (len(bad) == 0) != tt.ok {
			t.Errorf("%s imports %s: %q, want ok = %v", tt.pkg, tt.imp, bad, tt.ok)
		}
	}
	if bad := badNames([]listed{{ImportPath: "berth/internal/util", Name: "util", GoFiles: []string{"a.go"}}}); len(bad) != 2 {
		t.Errorf("a package util without a comment: %q", bad)
	}
}
