package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

func TestSubnetsTakeWhatLiesInThem(t *testing.T) {
	got, err := subnets(
		[]string{"10.1.0.0/16", " 10.2.0.0/16", "fd00:1::/64"},
		[]string{"10.2.0.1", "fd00:1::5"},
		[]string{"10.1.128.0/17"},
		[]string{"a=10.1.0.9", "b=10.1.0.10", "c=fd00:1::9"},
	)
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := []berth.Subnet{
		{Prefix: prefix("10.1.0.0/16"), Range: prefix("10.1.128.0/17"), Aux: map[string]netip.Addr{"a": addr("10.1.0.9"), "b": addr("10.1.0.10")}},
		{Prefix: prefix("10.2.0.0/16"), Gateway: addr("10.2.0.1")},
		{Prefix: prefix("fd00:1::/64"), Gateway: addr("fd00:1::5"), Aux: map[string]netip.Addr{"c": addr("fd00:1::9")}},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

func TestSubnetsRefuseWhatLiesNowhere(t *testing.T) {
	one := []string{"10.1.0.0/24"}
	for _, tt := range []struct {
		name                          string
		prefixes, gateways, parts, ax []string
		want                          string
	}{
		{"no prefix", []string{"10.1.0.0"}, nil, nil, nil, `--subnet "10.1.0.0": a prefix is wanted, as 10.9.0.0/24`},
		{"gateway of no subnet", one, []string{"10.2.0.1"}, nil, nil, "--gateway 10.2.0.1 lies in no --subnet"},
		{"gateway without subnet", nil, []string{"10.2.0.1"}, nil, nil, "--gateway 10.2.0.1 lies in no --subnet"},
		{"two gateways", one, []string{"10.1.0.1", "10.1.0.2"}, nil, nil, "--gateway 10.1.0.2: subnet 10.1.0.0/24 has 10.1.0.1 already"},
		{"no address", one, []string{"x"}, nil, nil, `--gateway "x": an address is wanted, as 10.9.0.1`},
		{"range too wide", one, nil, []string{"10.1.0.0/16"}, nil, "--ip-range 10.1.0.0/16 lies in no --subnet"},
		{"two ranges", one, nil, []string{"10.1.0.0/26", "10.1.0.64/26"}, nil, "--ip-range 10.1.0.64/26: subnet 10.1.0.0/24 has 10.1.0.0/26 already"},
		{"auxiliary of no subnet", one, nil, nil, []string{"a=10.2.0.1"}, "--aux-address a=10.2.0.1 lies in no --subnet"},
		{"auxiliary without name", one, nil, nil, []string{"=10.1.0.1"}, `--aux-address "=10.1.0.1": NAME=ADDRESS is wanted, as router=10.9.0.9`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := subnets(tt.prefixes, tt.gateways, tt.parts, tt.ax)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct{ text, want, err string }{
		{`{}`, "[] [] []", ""},
		{`{"registry-mirrors": ["https://m"], "insecure-registries": ["10.0.0.0/8", "r:5000"]}`, "[] [https://m] [10.0.0.0/8 r:5000]", ""},
		{`{"pools": [{"base": "10.0.0.0/8", "size": 24}, {"base": "fd00::1/48", "size": 64}]}`, "[{10.0.0.0/8 24} {fd00::/48 64}] [] []", ""},
		{`{"pool": []}`, "", `unknown field "pool"`},
		{`{"pools": [{"base": "10.0.0.0/8", "length": 24}]}`, "", `unknown field "length"`},
		{`{"pools": [{"base": "10.0.0.0/8", "size": 33}]}`, "", "pool 10.0.0.0/8 cut into subnets of /33"},
		{`{"pools": [{"base": "10.0.0.0/24", "size": 8}]}`, "", "pool 10.0.0.0/24 cut into subnets of /8"},
		{`{"pools": [{"size": 8}]}`, "", "cut into subnets of /8"},
		{`{} {}`, "", "more than one value"},
		{``, "", "EOF"},
	} {
		got, err := parseConfig([]byte(tt.text))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: got %v, want an error with %s", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil || fmt.Sprint(got.pools(), got.Mirrors, got.Insecure) != tt.want {
			t.Errorf("%s: got %v, %v, want %s", tt.text, got, err, tt.want)
		}
	}
}

func TestConfigThatWasAskedForMustBeThere(t *testing.T) {
	if _, err := readConfig(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that it is not there", err)
	}
}

func TestFilters(t *testing.T) {
	front := engine.NetworkDetail{Network: berth.Network{ID: "abc", Name: "front", Driver: berth.Bridge, Labels: map[string]string{"a": "1", "b": ""}}}
	for _, tt := range []struct {
		words string
		want  bool
	}{
		{"", true},
		{"driver=bridge", true},
		{"driver=link", false},
		{"driver=link driver=bridge", true},
		{"driver=bridge internal=true", false},
		{"internal=false", true},
		{"internal=0", true},
		{"internal=maybe", false},
		{"name=ron", true},
		{"id=ab", true},
		{"id=bc", false},
		{"label=a", true},
		{"label=a=1", true},
		{"label=a=2", false},
		{"label=a label=c", false},
		{"label=a label=b=", true},
		{"type=builtin", false},
		{"dangling=true", true},
	} {
		match, err := networkFilters.compile(strings.Fields(tt.words))
		if err != nil {
			t.Errorf("%s: %v", tt.words, err)
		} else if got := match(front); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.words, got, tt.want)
		}
	}
	for _, word := range []string{"colour=red", "driver", "=x"} {
		if _, err := networkFilters.compile([]string{word}); report(new(bytes.Buffer), nil, err) != exitUsage {
			t.Errorf("%s: %v, want wrong usage", word, err)
		}
	}
}

// A thing has what a template may ask for.
type thing struct {
	ID, Name, Labels string
	labelled         `json:"-"`
}

var things = []thing{{"1", "front", "a=1", labelled{"x.a": "1"}}, {"2", "back", "", nil}}

var thingLayout = layout{headings: header{"ID": "THING ID", "Name": "NAME", "Labels": "LABELS"}, shown: []string{"ID", "Name"}, quiet: "ID"}

func TestShow(t *testing.T) {
	for _, tt := range []struct {
		name string
		list list
		want string
	}{
		{"default", list{}, "THING ID   NAME\n1          front\n2          back\n"},
		{"table", list{format: "table"}, "THING ID   NAME\n1          front\n2          back\n"},
		{"quiet", list{quiet: true}, "1\n2\n"},
		{"json", list{format: "json"}, `{"ID":"1","Name":"front","Labels":"a=1"}` + "\n" + `{"ID":"2","Name":"back","Labels":""}` + "\n"},
		{"own table", list{format: `table {{upper .Name}}\t{{.ID}}`}, "NAME      THING ID\nFRONT     1\nBACK      2\n"},
		{"label", list{format: `table {{.Label "x.a"}}\t{{.Name}}`}, "A         NAME\n1         front\n          back\n"},
		{"template", list{format: `{{.ID}}\t{{truncate .Name 2}}`}, "1\tfr\n2\tba\n"},
		{"functions", list{format: `{{json .Name}} {{title .Name}} {{pad .ID 1 2}}| {{join (split .Name "o") "-"}}`}, "\"front\" Front  1  | fr-nt\n\"back\" Back  2  | back\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := show(tt.list, &b, thingLayout, things); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Error(d)
			}
		})
	}
	for _, bad := range []string{"{{", "{{.Colour}}", "table {{.Colour}}", "{{colour .Name}}"} {
		var b bytes.Buffer
		err := show(list{format: bad}, &b, thingLayout, things)
		if report(new(bytes.Buffer), nil, err) != exitUsage {
			t.Errorf("%s: got %q, %v, want wrong usage", bad, b.String(), err)
		}
	}
}

func TestInspectTakesNamesOfFieldsAndOfJSON(t *testing.T) {
	values := []networkJSON{{Name: "front", ID: "1", Labels: map[string]string{"a": "<b>"}}}
	for _, tt := range []struct{ format, want string }{
		{"{{.ID}}", "1\n"},
		{"{{.Id}}", "1\n"},
		{"{{json .Labels}}", `{"a":"<b>"}` + "\n"},
		{`{{range $k, $v := .Labels}}{{$k}}\t{{$v}}{{end}}`, "a\t<b>\n"},
	} {
		var b bytes.Buffer
		if err := inspect(&b, tt.format, values); err != nil || b.String() != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.format, b.String(), err, tt.want)
		}
	}
	if err := inspect(new(bytes.Buffer), "{{.Colour}}", values); err == nil || !strings.Contains(err.Error(), "Colour") {
		t.Errorf("got %v, want an error that names the field", err)
	}
	var b bytes.Buffer
	if err := inspect(&b, "", []networkJSON{}); err != nil || b.String() != "[]\n" {
		t.Errorf("nothing: got %q, %v", b.String(), err)
	}
}

func TestReport(t *testing.T) {
	root := Root()
	of := func(words ...string) *cobra.Command {
		cmd, _, err := root.Find(words)
		if err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	inUse := fmt.Errorf("remove network front: web: %w", berth.ErrInUse)
	for _, tt := range []struct {
		name   string
		cmd    *cobra.Command
		err    error
		status int
		want   string
	}{
		{"nothing", root, nil, 0, ""},
		{"plain", root, errors.New("no"), 1, "berth: no\n"},
		{"all was said", root, &exit{status: 1}, 1, ""},
		{"several", of("network", "rm"), errors.Join(inUse, errors.Join(errors.New("two"), nil)), 1,
			"berth: remove network front: web: in use\nberth: two\nhint: --force disconnects what is connected\n"},
		{"hint of another command", of("network", "prune"), inUse, 1, "berth: remove network front: web: in use\n"},
		{"one of several causes", root, fmt.Errorf("a: %w: %w", errors.New("b"), errors.New("c")), 1, "berth: a: b: c\n"},
		{"usage", of("network", "ls"), usage(errors.New("no")), 2, "berth: no\nhint: 'berth network ls --help' shows how it is used\n"},
		{"usage of what has a status", root, usage(failExec(errors.New("no"))), 125, "berth: no\n"},
		{"no hint for the command's own", of("sandbox", "exec"), &exit{exitCannotRun, os.ErrPermission}, 126, "berth: permission denied\n"},
		{"control characters", root, errors.New("a\x1b[31m\nb"), 1, "berth: a?[31m; b\n"},
		{"drift", root, fmt.Errorf("x: %w", berth.ErrDrifted), 1, "berth: x: drifted\nhint: somebody else changes what is Berth's: 'berth check' shows what, 'berth reconcile' mends it\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.status == exitCannotRun && os.Geteuid() != 0 {
				t.Skip("needs root: others are told of sudo")
			}
			var b bytes.Buffer
			if got := report(&b, tt.cmd, tt.err); got != tt.status {
				t.Errorf("exit status %d, want %d", got, tt.status)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPortAloneIsTheHostsWhereItIsTakenBack(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{"8888", "[{tcp 8888 8888 0}]"},
		{"8888/UDP", "[{udp 8888 8888 0}]"},
		{"8000-8002", "[{tcp 8000 8002 0}]"},
		{"8888:80", "[{tcp 8888 8888 80}]"},
		{"[::1]:8888:80/sctp", "[{sctp 8888 8888 80}]"},
	} {
		specs, err := unpublishSpec(tt.spec)
		if err != nil {
			t.Errorf("%s: %v", tt.spec, err)
		}
		var got []string
		for _, s := range specs {
			got = append(got, fmt.Sprintf("{%s %d %d %d}", s.Protocol, s.HostLow, s.HostHigh, s.Port))
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: got %v, want %s", tt.spec, got, tt.want)
		}
	}
	for _, bad := range []string{"", "0", "x", "80-", "9-8", "80/icmp", "70000", "-1", "+80", "1:2:3:4"} {
		if got, err := unpublishSpec(bad); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%q: got %v, %v, want that it is invalid", bad, got, err)
		}
	}
}

func TestConnectFlags(t *testing.T) {
	for _, c := range []connectFlags{
		{ip: "x"}, {ip: "fd00::1"}, {ip6: "10.0.0.1"}, {ip6: "::ffff:10.0.0.1"}, {ip6: "fe80::1%eth0"},
		{mac: "x"}, {mac: "01:00:00:00:00:01"}, {mac: "00:00:00:00:00:00"}, {mac: "00:11:22:33:44:55:66:77"}, {labels: []string{"=x"}},
	} {
		if o, err := c.options(); err == nil {
			t.Errorf("%+v: got %+v, want an error", c, o)
		}
	}
	c := connectFlags{ip: "10.0.0.7", ip6: "fd00::7", mac: "02-00-00-00-00-07", dev: "lan0", priority: -1}
	o, err := c.options()
	if err != nil {
		t.Fatal(err)
	}
	if o.IP4.String() != "10.0.0.7" || o.IP6.String() != "fd00::7" || o.MAC.String() != "02:00:00:00:00:07" || o.Interface != "lan0" || o.GwPriority != -1 {
		t.Errorf("got %+v", o)
	}
}

// TestHelp holds each command to what a reader of its help expects.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.Hidden && (cmd.Short == "" || cmd.Example == "") {
			t.Errorf("%s: it has no short text or no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			if !strings.HasPrefix(line, "  berth ") {
				t.Errorf("%s: example %q is not indented, or no command", cmd.CommandPath(), line)
			}
		}
		for line := range strings.Lines(cmd.Long) {
			if len([]rune(strings.TrimSuffix(line, "\n"))) > 80 {
				t.Errorf("%s: help of more than 80 columns: %s", cmd.CommandPath(), line)
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(Root())
}
