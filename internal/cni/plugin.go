package cni

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"berth/engine"
)

// versions are what the plugin speaks, oldest first.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Main serves the one call that the environment and standard input describe
// and returns the exit status. A signal ends it wherever it is: what it leaves
// the next call finishes or takes away.
func Main() int {
	name := filepath.Base(os.Args[0])
	if d, ok := dropIns[name]; ok {
		return d.main(name)
	}
	var in io.Reader = os.Stdin
	if c := os.Getenv("CNI_COMMAND"); c != "" && c != "VERSION" {
		b, err := io.ReadAll(os.Stdin)
		name := asked(b)
		if d, ok := dropIns[name]; ok && err == nil {
			if err = replay(b); err == nil {
				return d.main(name)
			}
		}
		in = io.MultiReader(bytes.NewReader(b), failing{err})
	}
	return run(context.Background(), os.Getenv, in, os.Stdout, os.Stderr)
}

// failing is what cannot be read further.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, cmp.Or(f.err, io.EOF) }

// A call is one execution of the plugin.
type call struct {
	command, container, netns, ifname, args, path string

	stdin  []byte
	conf   config
	opened engine.Options
	stderr io.Writer

	previous *current.Result // of the plugin that made the interface, in a chain
}

// A verb is a command of the specification.
type verb struct {
	since string // the first version that has it
	needs []string
	do    func(*call, context.Context, *engine.Engine) (types.Result, error)
}

var verbs = map[string]verb{
	"ADD":    {"0.3.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, (*call).add},
	"DEL":    {"0.3.0", []string{"CNI_CONTAINERID", "CNI_IFNAME"}, (*call).del},
	"CHECK":  {"0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, (*call).check},
	"GC":     {"1.1.0", nil, (*call).gc},
	"STATUS": {"1.1.0", nil, (*call).status},
}

// run serves one call: a result or an error goes to stdout, what a program that
// is executed has to say to stderr.
func run(ctx context.Context, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &call{
		command: getenv("CNI_COMMAND"), container: getenv("CNI_CONTAINERID"), netns: getenv("CNI_NETNS"),
		ifname: getenv("CNI_IFNAME"), args: getenv("CNI_ARGS"), path: getenv("CNI_PATH"), stderr: stderr,
	}
	if c.command == "" {
		fmt.Fprintf(stderr, "CNI plugin berth: it is run by a container runtime; it speaks %s\n", strings.Join(versions, ", "))
	}
	result, err := c.serve(ctx, getenv, stdin)
	if err == nil && result != nil {
		err = write(stdout, result)
	}
	if err == nil {
		return 0
	}
	answer := asError(err)
	answer.CNIVersion = cmp.Or(c.conf.CNIVersion, latest)
	if err := write(stdout, answer); err != nil {
		fmt.Fprintln(stderr, "berth-cni:", answer.Msg)
	}
	return 1
}

var latest = versions[len(versions)-1]

func write(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	if err != nil {
		return &Error{Code: codeIO, Msg: "write the answer: " + err.Error()}
	}
	return nil
}

// serve returns what is to be printed, if anything.
func (c *call) serve(ctx context.Context, getenv func(string) string, stdin io.Reader) (any, error) {
	if c.command == "VERSION" {
		return c.version(stdin), nil
	}
	v, ok := verbs[c.command]
	if !ok {
		return nil, fail(codeEnvironment, "CNI_COMMAND: %q is no command", short(c.command))
	}
	if err := c.checkEnvironment(v); err != nil {
		return nil, err
	}
	var err error
	if c.stdin, err = io.ReadAll(stdin); err != nil {
		return nil, fail(codeIO, "read the configuration: %v", err)
	}
	remove := c.command == "DEL" || c.command == "GC"
	if c.conf, err = decode(c.stdin, remove); err != nil {
		return nil, err
	}
	if err := c.checkVersion(v); err != nil {
		return nil, err
	}
	if err := c.conf.takeArgs(c.args, remove); err != nil {
		return nil, err
	}
	c.opened = c.options(getenv)
	if c.opened.Pools, err = readPools(getenv("BERTH_CONFIG")); err != nil && !remove {
		return nil, err
	}
	e, err := engine.Open(ctx, c.opened)
	if err != nil {
		if c.command == "STATUS" {
			return nil, fail(codeUnavailable, "%v", err)
		}
		return nil, err
	}
	result, err := v.do(c, ctx, e)
	if err := errors.Join(err, e.Close()); err != nil || result == nil {
		return nil, err
	}
	return inVersion(result, c.conf.CNIVersion)
}

func (c *call) options(getenv func(string) string) engine.Options {
	return engine.Options{
		Root:   cmp.Or(c.conf.Root, getenv("BERTH_ROOT")),
		Run:    cmp.Or(c.conf.Run, getenv("BERTH_RUN")),
		Notice: func(text string) { fmt.Fprintln(c.stderr, "note:", text) },
	}
}

// checkEnvironment finds what is missing or cannot be. CNI_PATH is only asked
// for when a program is looked for in it.
func (c *call) checkEnvironment(v verb) error {
	have := map[string]string{"CNI_CONTAINERID": c.container, "CNI_NETNS": c.netns, "CNI_IFNAME": c.ifname}
	missing := slices.DeleteFunc(slices.Clone(v.needs), func(name string) bool { return have[name] != "" })
	if len(missing) > 0 {
		return fail(codeEnvironment, "missing in the environment: %s", strings.Join(missing, ", "))
	}
	if v.needs == nil {
		return nil
	}
	if why := utils.ValidateContainerID(c.container); why != nil {
		return fail(codeEnvironment, "CNI_CONTAINERID: %s: %q", why.Msg, short(c.container))
	}
	if why := utils.ValidateInterfaceName(c.ifname); why != nil {
		return fail(codeEnvironment, "CNI_IFNAME: %s: %q", why.Msg, short(c.ifname))
	}
	return nil
}

func (c *call) checkVersion(v verb) error {
	if !slices.Contains(versions, c.conf.CNIVersion) {
		e := fail(codeVersion, "cniVersion %q is not spoken", short(c.conf.CNIVersion))
		e.Details = "there are " + strings.Join(versions, ", ")
		c.conf.CNIVersion = ""
		return e
	}
	if old, err := version.GreaterThan(v.since, c.conf.CNIVersion); err != nil || old {
		return fail(codeVersion, "cniVersion %s has no %s; %s is the first", c.conf.CNIVersion, c.command, v.since)
	}
	return nil
}

// A versionAnswer is the answer to VERSION.
type versionAnswer struct {
	CNIVersion string   `json:"cniVersion"`
	Supported  []string `json:"supportedVersions"`
}

// version answers with the version that was asked in, if it is spoken. Some
// callers ask with a standard input that never ends, as the reference plugins
// do not read it: it is not waited for long.
func (c *call) version(stdin io.Reader) any {
	asked := make(chan string, 1)
	go func() {
		var in struct {
			CNIVersion string `json:"cniVersion"`
		}
		b, _ := io.ReadAll(io.LimitReader(stdin, 1<<16))
		_ = json.NewDecoder(bytes.NewReader(b)).Decode(&in)
		asked <- in.CNIVersion
	}()
	answer := versionAnswer{latest, versions}
	select {
	case v := <-asked:
		if slices.Contains(versions, v) {
			answer.CNIVersion = v
		}
	case <-time.After(100 * time.Millisecond):
	}
	return answer
}

// short keeps what somebody else wrote short enough for one line.
func short(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:57], "") + "…"
	}
	return s
}
