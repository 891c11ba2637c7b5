package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"

	"berth/engine"
)

const defaultConfig = "/etc/berth/config.json"

// A config is the configuration file. What is about registries has the names
// that it has in Docker's daemon.json.
type config struct {
	Pools []struct {
		Base netip.Prefix `json:"base"`
		Size int          `json:"size"`
	} `json:"pools"`
	Mirrors  []string `json:"registry-mirrors"`
	Insecure []string `json:"insecure-registries"`
}

// readConfig reads the configuration file. Without a path it is the default
// one, which need not be there.
func readConfig(path string) (config, error) {
	asked := path != ""
	if !asked {
		path = defaultConfig
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return config{}, nil
	}
	if err != nil {
		return config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := parseConfig(b)
	if err != nil {
		return config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

func parseConfig(b []byte) (config, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c config
	err := d.Decode(&c)
	if err == nil && d.Decode(new(any)) != io.EOF {
		err = errors.New("there is more than one value in it")
	}
	if err != nil {
		return c, fmt.Errorf(`%w; it looks like {"pools": [{"base": "10.0.0.0/8", "size": 24}]}`, err)
	}
	for _, p := range c.Pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return c, fmt.Errorf("pool %s cut into subnets of /%d: base is a prefix, size is from its length to its address's", p.Base, p.Size)
		}
	}
	return c, nil
}

// pools are where subnets come from.
func (c config) pools() (out []engine.Pool) {
	for _, p := range c.Pools {
		out = append(out, engine.Pool{Base: p.Base.Masked(), Size: p.Size})
	}
	return out
}
