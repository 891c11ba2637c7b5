package cni

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"berth/internal/attach"
)

// Where tuning keeps what was before it, and the list of what it may set.
const (
	tuningDir       = "/run/cni/tuning"
	tuningAllowlist = "/etc/cni/tuning/allowlist.conf"
)

var tuningKeys = map[string]map[string]key{
	"": {
		"sysctl":   {verdict: same, why: "of `net.` only, and only those of `/etc/cni/tuning/allowlist.conf` if that is there; `IFNAME` is the interface"},
		"mac":      {verdict: same},
		"promisc":  {verdict: same},
		"mtu":      {verdict: same},
		"allmulti": {verdict: same},
		"txQLen":   {verdict: same},
		"dataDir":  {verdict: same, why: "the same files: DEL puts back what they say"},
	},
	"runtimeConfig": {"mac": {verdict: same}},
	"args":          {"cni": {verdict: same, why: "`sysctl`, `mac`, `promisc`, `mtu`, `allmulti`, `txQLen`"}},
}

// A tuned is what of a link is wanted.
type tuned struct {
	Sysctl   map[string]string `json:"sysctl"`
	MAC      string            `json:"mac"`
	Promisc  *bool             `json:"promisc"`
	MTU      int               `json:"mtu"`
	AllMulti *bool             `json:"allmulti"`
	TxQueue  *int              `json:"txQLen"`
}

type tuningConf struct {
	types.NetConf
	tuned
	DataDir       string `json:"dataDir"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI tuned `json:"cni"`
	} `json:"args"`
}

// A restore is what a link was before, in the file that DEL reads.
type restore struct {
	MAC      string `json:"mac,omitempty"`
	Promisc  *bool  `json:"promisc,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	AllMulti *bool  `json:"allmulti,omitempty"`
	TxQueue  *int   `json:"txQLen,omitempty"`
}

func loadTuning(args *skel.CmdArgs) (*tuningConf, error) {
	c := &tuningConf{DataDir: tuningDir}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return nil, fmt.Errorf("failed to load netconf: %w", err)
	}
	mac, err := macOf(args.Args, c.RuntimeConfig.MAC, c.Args.CNI.MAC)
	if err != nil {
		return nil, err
	}
	if mac != "" {
		c.MAC = mac
	}
	if c.Sysctl == nil {
		c.Sysctl = map[string]string{}
	}
	more := c.Args.CNI
	maps.Copy(c.Sysctl, more.Sysctl)
	if more.Promisc != nil {
		c.Promisc = more.Promisc
	}
	if more.MTU != 0 {
		c.MTU = more.MTU
	}
	if more.AllMulti != nil {
		c.AllMulti = more.AllMulti
	}
	if more.TxQueue != nil {
		c.TxQueue = more.TxQueue
	}
	if c.Promisc != nil && !*c.Promisc {
		c.Promisc = nil // it switches nothing off
	}
	if err := twice(args.StdinData); err != nil {
		return nil, err
	}
	return c, nil
}

// twice refuses a sysctl that is said twice, which a map does not show.
func twice(conf []byte) error {
	var raw struct {
		Sysctl json.RawMessage `json:"sysctl"`
	}
	if err := json.Unmarshal(conf, &raw); err != nil || raw.Sysctl == nil {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(raw.Sysctl)))
	seen := map[string]bool{}
	for i := 0; ; i++ {
		t, err := d.Token()
		if err != nil {
			return nil // at its end
		}
		s, ok := t.(string)
		if !ok || i%2 == 0 { // the brace, then key and value in turn
			continue
		}
		if seen[s] {
			return fmt.Errorf("duplicated sysctl key: %s", s)
		}
		seen[s] = true
	}
}

// sysctlPath is the path of a sysctl below /proc/sys. Its name has dots, or
// slashes where an interface has dots.
func sysctlPath(name, ifname string) (string, error) {
	path := name
	if !strings.Contains(name, "/") {
		path = strings.ReplaceAll(name, ".", "/")
	}
	path = filepath.Clean(strings.ReplaceAll(path, "IFNAME", ifname))
	if !strings.HasPrefix(path, "net/") {
		return "", fmt.Errorf("invalid net sysctl key: %q", name)
	}
	return path, nil
}

// allowed refuses what is not in the list, if there is one.
func allowed(sysctl map[string]string) error {
	f, err := os.Open(tuningAllowlist)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var list []*regexp.Regexp
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" {
			continue
		}
		r, err := regexp.Compile(line)
		if err != nil {
			return fmt.Errorf("%s: %w", tuningAllowlist, err)
		}
		list = append(list, r)
	}
	for _, name := range slices.Sorted(maps.Keys(sysctl)) {
		if !slices.ContainsFunc(list, func(r *regexp.Regexp) bool { return r.MatchString(name) }) {
			return said("Sysctl %s is not allowed. Only the following sysctls are allowed: %v", name, list)
		}
	}
	return s.Err()
}

func (c *tuningConf) change() (ch attach.Change, err error) {
	if ch.MAC, err = parseMAC(c.MAC); err != nil {
		return ch, fmt.Errorf("invalid args %s for MAC addr: %w", c.MAC, err)
	}
	ch.MTU, ch.Promisc, ch.AllMulti, ch.TxQueue = c.MTU, c.Promisc, c.AllMulti, c.TxQueue
	return ch, nil
}

func tuningAdd(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := loadTuning(args)
	if err != nil {
		return err
	}
	if err := allowed(c.Sysctl); err != nil {
		return err
	}
	ch, err := c.change()
	if err != nil {
		return err
	}
	r, err := previousOf(&c.NetConf)
	if err != nil {
		return err
	}
	if r == nil {
		return said("Required prevResult missing")
	}
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range slices.Sorted(maps.Keys(c.Sysctl)) {
		path, err := sysctlPath(name, args.IfName)
		if err == nil {
			err = h.SetSysctlInside(ctx, path, c.Sysctl[name])
		}
		if err != nil {
			return err
		}
	}
	if ch == (attach.Change{}) {
		return printResult(r, c.CNIVersion)
	}
	l, err := h.Inside(args.IfName)
	if err != nil {
		return fmt.Errorf("failed to get %q: %w", args.IfName, err)
	}
	if err := c.remember(args, l); err != nil {
		return err
	}
	if err := h.Tune(ctx, args.IfName, ch); err != nil {
		return err
	}
	for _, i := range r.Interfaces {
		if i.Name == args.IfName && c.MAC != "" {
			i.Mac = ch.MAC.String()
		}
		if i.Name == args.IfName && c.MTU != 0 && i.Mtu != 0 {
			i.Mtu = c.MTU
		}
	}
	return printResult(r, c.CNIVersion)
}

func (c *tuningConf) file(args *skel.CmdArgs) string {
	return filepath.Join(c.DataDir, args.ContainerID+"_"+args.IfName+".json")
}

// remember writes what of the link will be otherwise.
func (c *tuningConf) remember(args *skel.CmdArgs, l attach.Link) error {
	var was restore
	if c.MAC != "" {
		was.MAC = l.MAC.String()
	}
	if c.Promisc != nil {
		on := l.Promisc()
		was.Promisc = &on
	}
	if c.MTU != 0 {
		was.MTU = l.MTU
	}
	if c.AllMulti != nil {
		was.AllMulti = &l.AllMulti
	}
	if c.TxQueue != nil {
		was.TxQueue = &l.TxQueue
	}
	b, err := json.MarshalIndent(was, "", " ")
	if err == nil {
		err = place(c.file(args), strings.NewReader(string(b)), 0o600)
	}
	return err
}

// tuningDel puts back what was before. That it cannot is no error: the link goes
// next.
func tuningDel(args *skel.CmdArgs) error {
	c, err := loadTuning(args)
	if err != nil {
		return err
	}
	h, err := openGoing(args.Netns)
	if h == nil || err != nil {
		return err
	}
	defer h.Close()
	b, err := os.ReadFile(c.file(args))
	if err != nil {
		return nil
	}
	var was restore
	if json.Unmarshal(b, &was) != nil {
		return nil
	}
	mac, err := parseMAC(was.MAC)
	if err != nil {
		return nil
	}
	ch := attach.Change{MTU: was.MTU, MAC: mac, Promisc: was.Promisc, AllMulti: was.AllMulti, TxQueue: was.TxQueue}
	if err := h.Tune(context.Background(), args.IfName, ch); err != nil {
		fmt.Fprintln(os.Stderr, "note:", err)
		return nil
	}
	return os.Remove(c.file(args))
}

func tuningCheck(args *skel.CmdArgs) error {
	c, err := loadTuning(args)
	if err != nil {
		return err
	}
	if r, err := previousOf(&c.NetConf); err != nil || r == nil {
		return errors.Join(err, said("Required prevResult missing"))
	}
	h, err := openNS(args.Netns)
	if err != nil {
		return err
	}
	defer h.Close()
	for name, want := range c.Sysctl {
		path, err := sysctlPath(name, args.IfName)
		if err != nil {
			return err
		}
		now, err := h.SysctlInside(path)
		if err != nil {
			return err
		}
		if now != want {
			return said("Error: Tuning configured value of %s is %s, current value is %s", path, want, now)
		}
	}
	l, err := h.Inside(args.IfName)
	if err != nil {
		return said("Cannot find container link %s", args.IfName)
	}
	mac, _ := net.ParseMAC(c.MAC)
	for _, d := range []struct {
		what       string
		asked      bool
		want, have any
	}{
		{"Ethernet", c.MAC != "", mac.String(), l.MAC.String()},
		{"promisc", true, c.Promisc != nil, l.Promisc()},
		{"MTU", c.MTU != 0, c.MTU, l.MTU},
		{"all-multicast mode", c.AllMulti != nil, c.AllMulti != nil && *c.AllMulti, l.AllMulti},
		{"Transmit Queue Length", c.TxQueue != nil, value(c.TxQueue), l.TxQueue},
	} {
		if d.asked && d.want != d.have {
			return said("Error: Tuning configured %s of %s is %v, current value is %v", d.what, args.IfName, d.want, d.have)
		}
	}
	return nil
}

func value(p *int) int {
	if p == nil {
		return 0
	}
	return *p
}
