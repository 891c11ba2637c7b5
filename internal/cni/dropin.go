package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"berth"
	"berth/internal/attach"
)

// A dropIn answers in the place of a reference plugin, by its name or by the
// type of the configuration.
type dropIn struct {
	skel.CNIFuncs
	since string // the first version of the specification that it speaks
	keys  map[string]map[string]key
}

// dropIns are the reference plugins that the program stands in for.
var dropIns = map[string]dropIn{
	"host-local": {skel.CNIFuncs{Add: hostLocalAdd, Del: hostLocalDel, Check: hostLocalCheck, GC: hostLocalGC, Status: hostLocalStatus}, "0.1.0", hostLocalKeys},
	"loopback":   {skel.CNIFuncs{Add: loopbackAdd, Del: loopbackDel, Check: loopbackCheck}, "0.1.0", loopbackKeys},
	"bridge":     {skel.CNIFuncs{Add: bridgeAdd, Del: bridgeDel, Check: bridgeCheck, GC: attachedGC, Status: ipamStatus}, "0.1.0", bridgeKeys},
	"portmap":    {portmap.funcs(), "0.1.0", portmapKeys},
	"firewall":   {firewall.funcs(), "0.4.0", firewallKeys},
	"bandwidth":  {bandwidth.funcs(), "0.3.0", bandwidthKeys},
	"tuning":     {skel.CNIFuncs{Add: tuningAdd, Del: tuningDel, Check: tuningCheck}, "0.1.0", tuningKeys},
	"ptp":        {skel.CNIFuncs{Add: ptpAdd, Del: ptpDel, Check: ptpCheck, GC: attachedGC, Status: ipamStatus}, "0.1.0", ptpKeys},
}

// DropIns returns the names of the reference plugins that the program stands in
// for, sorted.
func DropIns() []string { return slices.Sorted(maps.Keys(dropIns)) }

// main serves one call as the plugin of a name.
func (d dropIn) main(name string) int {
	guarded := d.CNIFuncs
	for _, f := range []*func(*skel.CmdArgs) error{&guarded.Add, &guarded.Check, &guarded.Status} {
		if do := *f; do != nil {
			*f = func(args *skel.CmdArgs) error {
				if err := refusedKeys(d.keys, args.StdinData); err != nil {
					return err
				}
				return asDropIn(do(args))
			}
		}
	}
	for _, f := range []*func(*skel.CmdArgs) error{&guarded.Del, &guarded.GC} {
		if do := *f; do != nil {
			*f = func(args *skel.CmdArgs) error { return asDropIn(do(args)) }
		}
	}
	err := skel.PluginMainFuncsWithError(guarded, version.VersionsStartingFrom(d.since), "CNI plugin "+name+", by Berth")
	if err == nil {
		return 0
	}
	if why := err.Print(); why != nil {
		fmt.Fprintln(os.Stderr, "berth-cni:", err)
	}
	return 1
}

// asDropIn is an error as skel passes it on. The reference plugins have no
// codes of their own.
func asDropIn(err error) error {
	if err == nil {
		return nil
	}
	e := asError(err)
	if e.Code >= codeExists {
		e.Code = codeInternal
	}
	return &types.Error{Code: e.Code, Msg: e.Msg, Details: e.Details}
}

// said is an error in the words of a reference plugin, which callers know.
func said(format string, args ...any) error { return fmt.Errorf(format, args...) }

// refusedKeys refuses what a plugin has by that name and this one has not. A
// key that is nobody's is left alone, as the reference plugins do.
func refusedKeys(tables map[string]map[string]key, conf []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(conf, &raw); err != nil {
		return fail(codeDecode, "failed to load netconf: %v", err)
	}
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		obj := raw
		if table != "" {
			obj = nil
			if json.Unmarshal(raw[table], &obj) != nil {
				continue // whoever decodes it says what is wrong
			}
		}
		for _, name := range slices.Sorted(maps.Keys(obj)) {
			if k := tables[table][name]; k.verdict == refused && !nothingSaid(obj[name]) {
				return unsupported(name, obj[name], k.why)
			}
		}
	}
	return nil
}

// nothingSaid reports whether a value is what a key has that is not there.
func nothingSaid(raw json.RawMessage) bool {
	return slices.Contains([]string{"null", "false", "0", `""`, "[]", "{}"}, string(raw))
}

// asked reads what type a configuration asks for; nothing if it cannot be read.
func asked(conf []byte) string {
	var c struct {
		Type string `json:"type"`
	}
	_ = json.Unmarshal(conf, &c) // whoever serves the call says what is wrong
	return c.Type
}

// replay makes what was read of standard input its content again.
func replay(b []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	os.Stdin = r
	go func() { // a pipe holds less than a configuration may be
		_, _ = w.Write(b) // it is read, or the program ends
		w.Close()
	}()
	return nil
}

// printResult answers in the version of the configuration.
func printResult(r types.Result, asked string) error {
	if asked == "" {
		asked = "0.1.0"
	}
	return types.PrintResult(r, asked)
}

// openNS opens the namespace of a call.
func openNS(path string) (*attach.Host, error) {
	h, err := attach.Open(path)
	if err != nil {
		return nil, fmt.Errorf("failed to open netns %q: %w", path, err)
	}
	return h, nil
}

// openGoing opens the namespace of a DEL. There is none if it is gone.
func openGoing(path string) (*attach.Host, error) {
	if path == "" {
		return nil, nil
	}
	h, err := openNS(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return h, err
}

// previousOf converts the result of the plugin before, if there is one.
func previousOf(conf *types.NetConf) (*current.Result, error) {
	if conf.RawPrevResult == nil {
		return nil, nil
	}
	if err := version.ParsePrevResult(conf); err != nil {
		return nil, fmt.Errorf("could not parse prevResult: %w", err)
	}
	r, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("could not convert result to current version: %w", err)
	}
	return r, nil
}

// firstOf is the first address of a subnet: the gateway, where nobody says
// otherwise.
func firstOf(n net.IPNet) (net.IP, error) {
	p, err := prefixOf(n)
	if err != nil {
		return nil, err
	}
	return p.Masked().Addr().Next().AsSlice(), nil
}

// familyAny is the default route's destination of an address's family.
func familyAny(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// parseMAC reads an address, or none.
func parseMAC(s string) (m berth.MAC, err error) {
	if s == "" {
		return m, nil
	}
	return berth.ParseMAC(s)
}
